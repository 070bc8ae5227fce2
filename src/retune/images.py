"""The default image names in the compiled pipelines; `retune submit` replaces them by those of the study."""

from retune import __version__

TRAIN_IMAGE = f"retune-train:{__version__}"
EVAL_IMAGE = f"retune-eval:{__version__}"

"""The names of the project's images, as the compiled pipelines carry them until a study names its own."""

from retune import __version__

TRAIN_IMAGE = f"retune-train:{__version__}"
EVAL_IMAGE = f"retune-eval:{__version__}"

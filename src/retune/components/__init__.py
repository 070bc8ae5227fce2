"""KFP components, one file a step: thin functions over `retune.steps`.

They are lightweight components: KFP ships their source and runs it in `image`, so each imports what it needs inside.
Whatever decides a result is an argument: KFP's cache key knows nothing of environment variables. Locally
`kfp.local.SubprocessRunner` runs them in this Python; on Kubernetes they run in the project's images.
"""

from retune import __version__

TRAIN_IMAGE = f"retune-train:{__version__}"
EVAL_IMAGE = f"retune-eval:{__version__}"

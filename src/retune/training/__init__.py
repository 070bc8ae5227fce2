"""LoRA trials: the model, the loop, checkpoints, and a base that stays loaded."""

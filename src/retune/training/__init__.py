"""LoRA training: adapters, the loop, checkpoints, validation, and a base that stays loaded."""

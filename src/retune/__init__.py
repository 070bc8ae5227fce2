"""retune finds, scores and promotes the best LoRA adapter for an instruction-tuned language model."""

__version__ = "0.1.0"

"""From data sets to batches: sources, mixing, prompts, tokens, batches."""

"""Text generation: batched prompts, shared prefixes computed once, switching between adapters."""

"""Answers of a model: many prompts at once, prefixes computed once, adapters put on and taken off."""

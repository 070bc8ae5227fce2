"""Runs model-generated code in a sandbox that permits only computation."""

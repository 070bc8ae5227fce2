"""Retuning by a CI system: what changed, one retuning at a time, a budget, a pull request, notifications."""

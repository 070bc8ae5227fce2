"""Retuning by a CI system: change detection, a lease, a budget, pull requests, notifications."""

"""`python -m retune` is `retune`."""

from retune.cli import main

main()

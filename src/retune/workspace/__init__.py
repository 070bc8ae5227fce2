"""The folders of a study and what is kept in them: trials, stamps of steps, locks, progress."""

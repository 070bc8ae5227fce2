"""The folders of a study and their files: trials, step stamps, locks, progress."""

"""Who runs the trials of a study."""

"""The steps of a study: one plain function each, skipped when it is up to date."""

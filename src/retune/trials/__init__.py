"""One trial of a study: train a setting, validate it, score it on benchmarks, and write its record."""

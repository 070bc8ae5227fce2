"""The benchmarks: one file each, and the questions that all of them are made of."""

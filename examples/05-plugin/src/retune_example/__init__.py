"""One of each: a search algorithm, a benchmark, a data format and an engine for retune."""

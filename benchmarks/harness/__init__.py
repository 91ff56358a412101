"""What the benchmarks share: their report, runs of the application, equal data for its peers, and their processes."""

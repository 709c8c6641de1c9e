"""Other people's programs on the same job, each run by the Python of its own environment; see the benchmarks."""

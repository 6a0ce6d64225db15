"""Framework of the benchmarks: child processes, statistics, stored results, and the page."""

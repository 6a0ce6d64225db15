"""Running cases in child processes, statistics, results, and the generated page."""

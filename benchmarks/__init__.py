"""Benchmarks of metricbus and its peers: `make bench`, `make bench-quick`."""

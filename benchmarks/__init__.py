"""The cost of metricbus compared with other loggers: `make bench`, `make bench-quick`."""

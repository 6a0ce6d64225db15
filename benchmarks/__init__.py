"""What metricbus costs, measured beside what people use today: `make bench`, `make bench-quick`."""

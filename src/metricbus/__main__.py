"""`python -m metricbus`, the same as the command `metricbus`."""

from metricbus.cli import main

main()

"""`python -m metricbus`, the same as the command `metricbus`."""

from metricbus._cli import main

main()

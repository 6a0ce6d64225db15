"""Workloads of the cases: logging loops, worker processes, broken backends, and readers."""

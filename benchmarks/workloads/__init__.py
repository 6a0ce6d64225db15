"""What the cases measure: ways to log, worker processes, broken backends, and readers."""

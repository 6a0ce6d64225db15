"""The logging sink: one standard library log line per row, in the training process."""

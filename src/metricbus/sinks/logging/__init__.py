"""The logging sink: one line of the standard logging module for each row."""

"""From the journal to people: histories, summaries, plots, exports, notebook displays.

In: a run folder, live or finished.
Out: `History` (`metricbus.read`), one-line and full summaries for the command line, figures, files.
Promises: reading changes nothing in the run folder; a damaged line is skipped and counted.
May not touch: the bus, the queue, sinks.
"""

"""Presents journals to people: histories, summaries, plots, exports, notebook displays.

Input: a run folder, live or finished.
Output: `History` (`metricbus.read`), run statuses and summaries for the command line, figures,
files.
Guarantees: reading never writes to the run folder. Damaged lines are skipped and counted. Values
that a rewind supersedes are left out unless they are requested.
Must not access: the bus, the queue, delivery (whose progress files it reads), backends.

`history` reads a whole run, or selected series of it, which `thin_blocks` can reduce to what a plot
needs; `columns`, `wide_table` and `dataframes` hold and convert its scalars. `last_rows` reads the
newest rows, `run_status` whether the run is alive, and `sink_status` how much each sink has
received. `export` writes other formats, `plots/` draws, and `notebook_html` renders displays.
"""

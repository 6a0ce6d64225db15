"""Presents journals to people: histories, summaries, plots, exports, notebook displays.

Input: a run folder, live or finished.
Output: `History` (`metricbus.read`), run statuses and summaries for the command line, figures,
files.
Guarantees: reading never writes to the run folder. Damaged lines are skipped and counted. Values
that a rewind supersedes are left out unless they are requested.
Must not access: the bus, the queue, delivery (whose progress files it reads), backends.

`history` reads a whole run; `columns`, `wide_table` and `dataframes` hold and convert its scalars.
`run_status` reads only the ends of the journal, `run_summary` all of it in bounded memory, and
`last_rows` the newest rows. `sink_status` reads how much each sink has received. `export` writes
other formats, `plots/` draws, and `notebook_html` renders displays.
"""

"""The run folder and its journal: the durable, append-only record of everything that was logged.

In: records, from the collector (`_ingest/collector.py`) and the importers; encoded media files.
Out: JSON lines in `journal/<segment>.jsonl`, files in `media/`, the identity of the run in
`run.json`; readers for all of them; which rows are superseded, dropped or partial.
Promises: a segment has exactly one writer; an append is written whole or not at all; no process
changes the segment of another one; a torn last line is skipped.
May not touch: the bus, the queue, sinks.
"""

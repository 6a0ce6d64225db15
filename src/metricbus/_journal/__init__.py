"""The run folder and its journal: the durable, append-only record of everything that was logged.

Input: records, from the collector (`_ingest/collector.py`) and the importers; encoded media files.
Output: JSON lines in `journal/<segment>.jsonl`, statistics of them in `summary/`, files in
`media/`, the identity of the run in `run.json`; readers for all of them; which rows are superseded,
dropped or partial; a summary of the whole run.
Guarantees: a segment has exactly one writer; an append is written whole or not at all; no process
changes the segment of another one; a torn last line is skipped.
Must not access: the bus, the queue, sinks.
"""

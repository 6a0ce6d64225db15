"""Finds out which segments were closed and which were not, and completes runs whose process died.

A closed segment has an end record as its last line. Without one, it is open while the process in
its header is alive; after that it is broken, and its last partial aggregates count. If no final
status was recorded, the run counts as killed once its process is dead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from metricbus._common.processes import ProcessId
from metricbus._common.records import (
    End,
    Header,
    PartialAggregates,
    ScalarRow,
    Status,
    with_rank_prefix,
)
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.run_updates import complete_run
from metricbus._journal.segment_reader import JournalReader, Row


class SegmentState(NamedTuple):
    """The writer of a segment, and the status with which it closed the segment, if it did."""

    writer: ProcessId
    status: Status | None

    @property
    def is_broken(self) -> bool:
        """Whether the writer died without closing it; only known for writers on this machine."""
        return self.status is None and not self.writer.is_alive()

    @property
    def is_open(self) -> bool:
        """Whether the writer may still append."""
        return self.status is None and self.writer.is_alive()


def segment_states(journal: Path) -> dict[str, SegmentState]:
    """Return the state of each segment that has a readable header."""
    reader = JournalReader(journal)
    states = {}
    for segment, length in reader.lengths().items():
        first = next(reader.read_segment(segment), None)
        last = next(reader.backwards(segment, length), None)
        if first is not None and isinstance(header := first.record, Header):
            end = last.record if last else None
            states[segment] = SegmentState(
                ProcessId(header.host, header.pid, header.process_started),
                end.status if isinstance(end, End) else None,
            )
    return states


def mark_dead_run(folder: RunFolder) -> Run:
    """Return the run, after recording its end in run.json if its process has died.

    The recorded status is that of the process's last closed segment, or `killed`.
    """
    run = folder.load()
    if run.status != "running" or run.process.is_alive():
        return run
    states = segment_states(folder.journal).values()
    statuses = [state.status for state in states if state.writer == run.process]
    last = JournalReader(folder.journal).modified_ns() or run.started
    status = next((status for status in reversed(statuses) if status), "killed")
    dead = msgspec.structs.replace(complete_run(folder), status=status, ended=last)
    if folder.load() == run:  # no process has resumed it in the meantime
        folder.save(dead)
    return dead


class PartialRows:
    """The pending reductions of segments that were not closed, found in the rows of a journal.

    Names with a later row in the segment are omitted: their reduction was emitted after all.
    """

    def __init__(self) -> None:
        self._pending: dict[str, PartialAggregates] = {}
        self._emitted: dict[str, set[str]] = {}  # names with their rank

    def update(self, row: Row) -> None:
        """Process the next row of its segment."""
        if isinstance(row.record, PartialAggregates):
            self._pending[row.segment] = row.record
            self._emitted[row.segment] = set()
        elif isinstance(row.record, ScalarRow) and row.segment in self._pending:
            self._emitted[row.segment].update(with_rank_prefix(row.record).values)
        elif isinstance(row.record, End):
            self._pending.pop(row.segment, None)

    def add_names(self, segment: str, names: Iterable[str]) -> None:
        """Process the names, with their rank, of rows of the segment that are not read."""
        if segment in self._pending:
            self._emitted[segment].update(names)

    def rows(self) -> list[tuple[str, ScalarRow]]:
        """Return what is pending, as (segment, partial row)."""
        result = []
        for segment, record in self._pending.items():
            for row in record.rows:
                names = zip(row.values, with_rank_prefix(row).values, strict=True)
                kept = [name for name, full in names if full not in self._emitted[segment]]
                if kept:
                    values = {name: row.values[name] for name in kept}
                    result.append((segment, msgspec.structs.replace(row, values=values)))
        return result


def partial_rows(rows: Iterable[Row]) -> list[tuple[str, ScalarRow]]:
    """Return the pending reductions in rows of a journal; see `PartialRows`."""
    partial = PartialRows()
    for row in rows:
        partial.update(row)
    return partial.rows()

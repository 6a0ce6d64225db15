"""Finds out which segments were closed and which were not, and completes runs whose process died.

A closed segment has an end record as its last line. Without one, it is open while the process in
its header is alive; after that it is broken, and its last partial aggregates count. If no final
status was recorded, the run counts as killed once its process is dead.
"""

from __future__ import annotations

import os
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
    decode_or_none,
)
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import SUFFIX, Row

_LAST_LINE_BYTES = 4096  # an end record is far shorter


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
    states = {path.stem: _segment_state(path) for path in sorted(journal.glob(f"*{SUFFIX}"))}
    return {segment: state for segment, state in states.items() if state is not None}


def _segment_state(path: Path) -> SegmentState | None:
    with open(path, "rb") as file:
        first = file.readline()
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_LINE_BYTES))
        last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    header, record = decode_or_none(first), decode_or_none(last)
    if not isinstance(header, Header):
        return None
    return SegmentState(
        ProcessId(header.host, header.pid, header.process_started),
        record.status if isinstance(record, End) else None,
    )


def mark_dead_run(folder: RunFolder) -> Run:
    """Return the run, after recording its end in run.json if its process has died.

    The recorded status is that of the process's last closed segment, or `killed`.
    """
    run = folder.load()
    if run.status != "running" or run.process.is_alive():
        return run
    states = segment_states(folder.journal).values()
    statuses = [state.status for state in states if state.writer == run.process]
    last = max((file.stat().st_mtime_ns for file in folder.journal.iterdir()), default=run.started)
    status = next((status for status in reversed(statuses) if status), "killed")
    dead = msgspec.structs.replace(run, status=status, ended=last)
    if folder.load() == run:  # no process has resumed it in the meantime
        folder.save(dead)
    return dead


def partial_rows(rows: Iterable[Row]) -> list[tuple[str, ScalarRow]]:
    """Return the pending reductions of segments that were not closed, as (segment, partial row).

    Names with a later row in the segment are omitted: their reduction was emitted after all.
    """
    pending: dict[str, PartialAggregates] = {}
    emitted: dict[str, set[str]] = {}
    for row in rows:
        if isinstance(row.record, PartialAggregates):
            pending[row.segment] = row.record
            emitted[row.segment] = set()
        elif isinstance(row.record, ScalarRow) and row.segment in pending:
            emitted[row.segment].update(row.record.values)
        elif isinstance(row.record, End):
            pending.pop(row.segment, None)
    return [
        (segment, msgspec.structs.replace(row, values=values))
        for segment, record in pending.items()
        for row in record.rows
        if (values := {n: v for n, v in row.values.items() if n not in emitted[segment]})
    ]

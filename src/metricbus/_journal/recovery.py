"""How the journal's segments end: by their writer, broken off, or not yet.

A segment that was ended has an end mark for its last line. Without one, it is open for as long as
the process lives that its header names; then it is broken, and what its reductions held is in it.
A run ends with its process too, if nobody has said how.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from metricbus._common.processes import ProcessId
from metricbus._common.records import (
    DECODE_ERRORS,
    End,
    Header,
    PartialAggregates,
    Scalars,
    Status,
    decode,
)
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import SUFFIX, Row

_LAST_LINE_BYTES = 4096  # an end mark is far shorter


class SegmentState(NamedTuple):
    """How a segment ends: with which status, None if it was not ended by who writes it."""

    writer: ProcessId
    status: Status | None

    @property
    def is_broken(self) -> bool:
        """Its writer died; of this machine's writers alone."""
        return self.status is None and not self.writer.is_alive()

    @property
    def is_open(self) -> bool:
        """Its writer may go on."""
        return self.status is None and self.writer.is_alive()


def segment_states(folder: Path) -> dict[str, SegmentState]:
    """How each segment ends, as far as it can be told."""
    found = {path.stem: _ending_of(path) for path in sorted(folder.glob(f"*{SUFFIX}"))}
    return {segment: ending for segment, ending in found.items() if ending is not None}


def _ending_of(path: Path) -> SegmentState | None:
    with open(path, "rb") as file:
        first = file.readline()
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_LINE_BYTES))
        last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        header = decode(first)
    except DECODE_ERRORS:
        return None  # nobody knows who writes it
    if not isinstance(header, Header):
        return None
    try:
        record = decode(last)
    except DECODE_ERRORS:  # torn
        record = None
    return SegmentState(
        ProcessId(header.host, header.pid, header.process_started),
        record.status if isinstance(record, End) else None,
    )


def mark_dead_run(folder: RunFolder) -> Run:
    """The run; if its process has died, marked as its segment says or else as killed."""
    run = folder.load()
    if run.status != "running" or run.process.is_alive():
        return run
    said = [end.status for end in segment_states(folder.journal).values() if end.writer == run.process]
    last = max((file.stat().st_mtime_ns for file in folder.journal.iterdir()), default=run.started)
    status = next((status for status in reversed(said) if status), "killed")
    dead = msgspec.structs.replace(run, status=status, ended=last)
    if folder.load() == run:  # nobody has gone on with it meanwhile
        folder.save(dead)
    return dead


def partial_rows(rows: Iterable[Row]) -> list[tuple[str, Scalars]]:
    """What the reductions held that were open when their segments broke off: partial rows, each
    with its segment. A name that came again after it was written down was emitted since, and is
    left out.
    """
    opened: dict[str, PartialAggregates] = {}
    since: dict[str, set[str]] = {}
    for row in rows:
        if isinstance(row.record, PartialAggregates):
            opened[row.segment] = row.record
            since[row.segment] = set()
        elif isinstance(row.record, Scalars) and row.segment in opened:
            since[row.segment].update(row.record.values)
        elif isinstance(row.record, End):
            opened.pop(row.segment, None)
    return [
        (segment, msgspec.structs.replace(row, values=values))
        for segment, record in opened.items()
        for row in record.rows
        if (values := {n: v for n, v in row.values.items() if n not in since[segment]})
    ]

"""What can be told of a run at a glance: from run.json, progress files, and the segments' ends.

However long a run is, a glance reads some 64 KiB of each of its segments. So the newest values are
exact, and the number of all values is either known or an estimate that says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from metricbus._common.records import (
    DECODE_ERRORS,
    Dropped,
    End,
    Header,
    Number,
    PartialAggregates,
    Record,
    Rewind,
    Scalars,
    decode,
    count_values,
    with_rank_prefix,
)
from metricbus._delivery.cursor import DeliveryProgress
from metricbus._history.sink_status import SinkStatus, read_all_progress, sink_statuses
from metricbus._journal.dropped_counts import RunDroppedCounts, SegmentDroppedCounts, total_dropped
from metricbus._journal.recovery import endings
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import SUFFIX, Position
from metricbus._journal.tail import end_of_lines, lines_backwards
from metricbus.errors import JournalError

CurrentStatus: TypeAlias = Literal["running", "silent", "finished", "failed", "killed"]
"""A run's status as it is now, whatever run.json says: a dead process cannot correct that.

`silent` is a run of another machine (or of an unknown writer) that has not ended and has written
nothing for a minute: whether it lives cannot be seen from here.
"""

_ENOUGH = 60_000  # bytes of lines: what the first block that is read has
_LONGEST_HEADER = 1 << 16
_SILENT_SECS = 60.0


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run without reading all of it.

    `step` and `epoch` are the largest near the ends of the segments, `last` has the newest value
    of each name there; None or empty where nothing was logged. `values` counts what is in the
    journal, superseded values too; it is an estimate unless `is_exact`. `modified` is when the
    journal was written to last, in nanoseconds since 1970-01-01 UTC. Of a run that has not ended,
    `dropped` is what was written down lately.
    """

    status: CurrentStatus
    step: int | None
    epoch: int | None
    values: int
    is_exact: bool
    last: dict[str, Number]
    changed: int
    dropped: RunDroppedCounts
    sinks: list[SinkStatus]


class _Tail(NamedTuple):
    """The last records of a segment, from its last `read` bytes.

    `length` is that of all its whole lines.
    """

    header: Header | None
    records: list[Record]
    read: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether those are all of its records."""
        return self.read == self.length

    @property
    def values(self) -> int:
        """In these records."""
        return sum(map(count_values, self.records))

    @property
    def attempt(self) -> int:
        """At the run."""
        return self.header.attempt if self.header else 1


def read_run_status(folder: RunFolder, run: Run) -> RunStatus:
    """A look at the run; `JournalError` or `OSError` where its folder cannot be read."""
    paths = _segments(folder)
    tails = {path.stem: _read_tail(path) for path in paths}
    changed = max((path.stat().st_mtime_ns for path in paths), default=run.started)
    progress = read_all_progress(folder)
    counts = [_count(segment, tail, progress) for segment, tail in tails.items()]
    step, epoch, last = _newest(tails.values())
    lengths = {segment: tail.length for segment, tail in tails.items()}
    return RunStatus(
        status=current_status(folder, run),
        step=step,
        epoch=epoch,
        values=sum(values for values, _ in counts),
        is_exact=all(exact for _, exact in counts),
        last=last,
        changed=changed,
        dropped=total_dropped(SegmentDroppedCounts(tail.records) for tail in tails.values()),
        sinks=sink_statuses(folder, run, progress, lengths),
    )


def current_status(folder: RunFolder, run: Run) -> CurrentStatus:
    """How it stands with the run now; writes nothing."""
    if run.status != "running":
        return run.status
    ends = endings(folder.journal)
    if run.process.is_here:
        if run.process.is_alive():
            return "running"
        ends = {name: end for name, end in ends.items() if end.writer == run.process}
        said = [end.status for end in ends.values() if end.status]
        return said[-1] if said else "killed"
    last = list(ends.values())[-1].status if ends else None
    if last and all(end.status for end in ends.values()):
        return last
    newest = max((path.stat().st_mtime for path in _segments(folder)), default=0.0)
    return "silent" if time.time() - newest > _SILENT_SECS else "running"


def _segments(folder: RunFolder) -> list[Path]:
    try:
        names = os.listdir(folder.journal)
    except FileNotFoundError:
        raise JournalError(f"the journal {folder.journal} is missing") from None
    return [folder.journal / name for name in sorted(names) if name.endswith(SUFFIX)]


def _read_tail(path: Path) -> _Tail:
    """At least one value, if there is any: a single row may be longer than what is enough."""
    records: list[Record] = []
    values = read = 0
    with open(path, "rb") as file:
        length = end_of_lines(file)
        for line in lines_backwards(file, length):
            read += len(line) + 1
            if (record := _decoded(line)) is not None:
                records.append(record)
                values += count_values(record)
            if values and read >= _ENOUGH:
                break
        file.seek(0)
        header = _decoded(file.readline(_LONGEST_HEADER))
    return _Tail(header if isinstance(header, Header) else None, records[::-1], read, length)


def _decoded(line: bytes) -> Record | None:
    try:
        return decode(line)
    except DECODE_ERRORS:
        return None


def _count(segment: str, tail: _Tail, found: Sequence[DeliveryProgress]) -> tuple[int, bool]:
    """A segment's values, and whether that is exact; the sink that is furthest has counted most."""
    if tail.is_whole:
        return tail.values, True
    places = [
        (progress.positions.get(segment, Position()).offset, progress.values.get(segment, 0))
        for progress in found
    ]
    offset, seen = max(places, default=(0, 0))
    density = tail.values / tail.read
    return round(seen + density * max(0, tail.length - offset)), offset >= tail.length


def _newest(tails: Iterable[_Tail]) -> tuple[int | None, int | None, dict[str, Number]]:
    """The largest step and epoch, and each name's newest value, among the last records.

    The newest record need not have the largest step: what is measured of an earlier one comes late.
    A rewind takes back what stands at greater steps.
    """
    records = [(tail.attempt, record) for tail in tails for record in tail.records]
    placed = [
        (attempt, r) for attempt, r in records if not isinstance(r, Header | PartialAggregates | Dropped | End)
    ]
    placed.sort(key=lambda pair: (pair[0], pair[1].time))  # stable: a segment keeps its order
    last: dict[str, tuple[int, Number]] = {}
    step = epoch = None
    for _, record in placed:
        if isinstance(record, Rewind) and record.rank:
            continue  # tells of its own place in the journal alone
        if isinstance(record, Rewind):
            step, epoch = record.step, record.epoch
            last = {name: at for name, at in last.items() if at[0] <= record.step}
            continue
        step, epoch = _larger(step, record.step), _larger(epoch, record.epoch)
        if isinstance(record, Scalars):
            values = with_rank_prefix(record).values
            last.update({name: (record.step, value) for name, value in values.items()})
    return step, epoch, {name: value for name, (_, value) in last.items()}


def _larger(so_far: int | None, other: int) -> int:
    return other if so_far is None else max(so_far, other)

"""Reads the status of a run quickly: from run.json, progress files, and the ends of the segments.

About 64 KiB of each segment is read, however long the run is. The newest values are exact. The
total number of values is exact or marked as an estimate.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from metricbus._common.records import (
    Dropped,
    End,
    Header,
    Number,
    PartialAggregates,
    Record,
    Rewind,
    ScalarRow,
    count_values,
    decode_or_none,
    with_rank_prefix,
)
from metricbus._delivery.cursor import DeliveryProgress
from metricbus._history.sink_status import SinkStatus, read_all_progress, sink_statuses
from metricbus._journal.crash_recovery import segment_states
from metricbus._journal.dropped_counts import RunDroppedCounts, SegmentDroppedCounts, total_dropped
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import SUFFIX, JournalReader, Position
from metricbus._journal.tail import end_of_last_line, lines_backwards

CurrentStatus: TypeAlias = Literal["running", "silent", "finished", "failed", "killed"]
"""The actual status of a run. It differs from run.json if the process died without updating it.

`silent` is a run on another host, or of an unknown writer, that has not ended and has written
nothing for a minute. Whether its process is alive cannot be checked from here.
"""

_MIN_TAIL_BYTES = 60_000  # about one block
_MAX_HEADER_BYTES = 1 << 16
_SILENT_SECS = 60.0


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a run, as far as it can be determined without reading the whole journal.

    `step` and `epoch` are the largest near the ends of the segments, and `last` has the newest
    value of each name there; they are None or empty if nothing was logged. `values` counts the
    values in the journal, including superseded ones; it is an estimate unless `is_exact` is true.
    `modified` is the time of the last write to the journal, in nanoseconds since 1970-01-01 UTC.
    For a live run, `dropped` has the counts that were written last.
    """

    status: CurrentStatus
    step: int | None
    epoch: int | None
    values: int
    is_exact: bool
    last: dict[str, Number]
    modified: int
    dropped: RunDroppedCounts
    sinks: list[SinkStatus]


class _SegmentTail(NamedTuple):
    """The records in the last `read` bytes of a segment's `length` bytes of complete lines."""

    header: Header | None
    records: list[Record]
    read: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether these are all records of the segment."""
        return self.read == self.length

    @property
    def values(self) -> int:
        return sum(map(count_values, self.records))

    @property
    def attempt(self) -> int:
        return self.header.attempt if self.header else 1


def read_run_status(folder: RunFolder, run: Run) -> RunStatus:
    """Read the status of a run.

    Raises `JournalError` or `OSError` if the run folder cannot be read.
    """
    paths = _segment_paths(folder)
    tails = {path.stem: _read_tail(path) for path in paths}
    modified = max((path.stat().st_mtime_ns for path in paths), default=run.started)
    all_progress = read_all_progress(folder)
    counts = [_count_segment_values(name, tail, all_progress) for name, tail in tails.items()]
    step, epoch, last = _latest_values(tails.values())
    lengths = {segment: tail.length for segment, tail in tails.items()}
    return RunStatus(
        status=current_status(folder, run),
        step=step,
        epoch=epoch,
        values=sum(values for values, _ in counts),
        is_exact=all(is_exact for _, is_exact in counts),
        last=last,
        modified=modified,
        dropped=total_dropped(SegmentDroppedCounts(tail.records) for tail in tails.values()),
        sinks=sink_statuses(folder, run, all_progress, lengths),
    )


def current_status(folder: RunFolder, run: Run) -> CurrentStatus:
    """Determine the actual status of a run, without writing it to run.json."""
    if run.status != "running":
        return run.status
    ends = segment_states(folder.journal)
    if run.process.is_local:
        if run.process.is_alive():
            return "running"
        ends = {name: end for name, end in ends.items() if end.writer == run.process}
        recorded = [end.status for end in ends.values() if end.status]
        return recorded[-1] if recorded else "killed"
    last = list(ends.values())[-1].status if ends else None
    if last and all(end.status for end in ends.values()):
        return last
    newest = max((path.stat().st_mtime for path in _segment_paths(folder)), default=0.0)
    return "silent" if time.time() - newest > _SILENT_SECS else "running"


def _segment_paths(folder: RunFolder) -> list[Path]:
    segments = JournalReader(folder.journal).segments()
    return [folder.journal / (segment + SUFFIX) for segment in segments]


def _read_tail(path: Path) -> _SegmentTail:
    """Read the last records of a segment, with at least one value if it has any.

    A single row can be longer than `_MIN_TAIL_BYTES`.
    """
    records: list[Record] = []
    values = read = 0
    with open(path, "rb") as file:
        length = end_of_last_line(file)
        for line in lines_backwards(file, length):
            read += len(line) + 1
            if (record := decode_or_none(line)) is not None:
                records.append(record)
                values += count_values(record)
            if values and read >= _MIN_TAIL_BYTES:
                break
        file.seek(0)
        header = decode_or_none(file.readline(_MAX_HEADER_BYTES))
    header = header if isinstance(header, Header) else None
    return _SegmentTail(header, records[::-1], read, length)


def _count_segment_values(
    segment: str, tail: _SegmentTail, all_progress: Sequence[DeliveryProgress]
) -> tuple[int, bool]:
    """Return the number of values in a segment, and whether it is exact.

    The sink with the furthest cursor has counted the values before it. The values after it are
    estimated from the density of values in the tail.
    """
    if tail.is_whole:
        return tail.values, True
    cursors = [
        (progress.positions.get(segment, Position()).offset, progress.values.get(segment, 0))
        for progress in all_progress
    ]
    offset, counted = max(cursors, default=(0, 0))
    density = tail.values / tail.read
    return round(counted + density * max(0, tail.length - offset)), offset >= tail.length


def _latest_values(
    tails: Iterable[_SegmentTail],
) -> tuple[int | None, int | None, dict[str, Number]]:
    """Return the largest step and epoch, and the newest value of each name, in the last records.

    The newest record need not have the largest step, because values of earlier steps may be logged
    late. A rewind removes the values at later steps.
    """
    records = [
        (tail.attempt, record)
        for tail in tails
        for record in tail.records
        if not isinstance(record, Header | PartialAggregates | Dropped | End)
    ]
    # The sort is stable: records of one segment with equal times keep their order.
    records.sort(key=lambda pair: (pair[0], pair[1].time))
    last: dict[str, tuple[int, Number]] = {}
    step = epoch = None
    for _, record in records:
        if isinstance(record, Rewind):
            if record.rank:
                # A rewind of another rank only supersedes rows after a position in one segment.
                continue
            step, epoch = record.step, record.epoch
            last = {name: latest for name, latest in last.items() if latest[0] <= record.step}
            continue
        step = record.step if step is None else max(step, record.step)
        epoch = record.epoch if epoch is None else max(epoch, record.epoch)
        if isinstance(record, ScalarRow):
            values = with_rank_prefix(record).values
            last.update({name: (record.step, value) for name, value in values.items()})
    return step, epoch, {name: value for name, (_, value) in last.items()}

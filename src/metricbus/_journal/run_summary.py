"""Summarizes everything that a run logged, in bounded memory.

Of a long journal, the statistics of its blocks are merged, and only the rest is read. Values that a
rewind supersedes are left out, as in `metricbus.read`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from metricbus._common.media_records import MediumRecord, TableRecord
from metricbus._common.records import (
    Epoch,
    Number,
    PartialAggregates,
    ScalarRow,
    count_values,
    with_rank_prefix,
)
from metricbus._journal.crash_recovery import PartialRows, segment_states
from metricbus._journal.dropped_counts import RunDroppedCounts, SegmentDroppedCounts, total_dropped
from metricbus._journal.rewind import find_rewinds
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import JournalReader, OnProgress, Row
from metricbus._journal.segment_summary import Block, LineRange, columns_of
from metricbus._journal.series_stats import Course, SeriesStats, stats_of

_MAX_BUFFERED_VALUES = 1 << 16
_ROWS_PER_REPORT = 5_000
_NO_LINES = LineRange(0, 0, 0)
# Blocks of a shorter journal would be too few for the course of a series.
_MIN_BYTES_WITH_BLOCKS = 8 << 20


class SeriesSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the values of one name.

    `last` is the last value in journal order. `nan` counts the NaN values; `min`, `max` and `mean`
    ignore them, and are None if there are no others. The mean is computed from a compensated sum.
    `first_step` and `last_step` are the smallest and the largest step. `course` is empty if it was
    not requested.
    """

    name: str
    count: int
    nan: int
    last: Number
    min: Number | None
    max: Number | None
    mean: float | None
    first_step: int
    last_step: int
    course: Course


class MediumSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The media of one kind logged under one name; `rows` is the total row count of tables."""

    name: str
    count: int
    first_step: int
    last_step: int
    rows: int
    newest: MediumRecord


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run logged, summarized.

    `rows` and `values` exclude the values that a rewind supersedes; `superseded` counts these.
    `values` includes media. `partial_rows` is the number of values in partial aggregates of
    reductions that were pending when their process died, or that are pending in a live run.
    `pending_partial` counts those of dead processes, which sinks receive after the run is over.
    `first_time` and `last_time` are the earliest and the latest time of a row, in nanoseconds since
    1970-01-01 UTC. `lengths` has the number of bytes in the complete lines of each segment; `torn`
    counts the bytes after them. `damaged` is the number of lines that were read and could not be
    decoded.
    """

    series: dict[str, SeriesSummary]
    media: list[MediumSummary]
    rows: int
    values: int
    superseded: int
    partial_rows: int
    pending_partial: int
    last_step: int | None
    epochs: int
    first_time: int | None
    last_time: int | None
    dropped: RunDroppedCounts
    damaged: int
    torn: int
    lengths: dict[str, int]

    @property
    def last_epoch(self) -> int | None:
        """The largest epoch; None if nothing was logged."""
        return self.epochs - 1 if self.epochs else None

    @property
    def journal_values(self) -> int:
        """The number of values in the journal, including superseded ones: sinks receive both."""
        return self.values + self.superseded


def summarize_run(
    folder: RunFolder,
    on_progress: OnProgress = lambda done, total: None,
    *,
    with_courses: bool = True,
) -> RunSummary:
    """Summarize the journal; `with_courses` says whether the course of each series is needed.

    Raises `JournalError` or `OSError` if the journal cannot be read.
    """
    return _SummaryPass(folder, on_progress, with_courses=with_courses).run()


class _SummaryPass:
    def __init__(self, folder: RunFolder, on_progress: OnProgress, *, with_courses: bool) -> None:
        self._journal = folder.journal
        self._reader = JournalReader(folder.journal)
        self._on_progress = on_progress
        self._with_courses = with_courses
        self._lengths = self._reader.lengths()
        self._rewinds = find_rewinds(folder.journal)
        self._stats: dict[str, SeriesStats] = {}  # in the order of first values
        self._courses: dict[str, Course] = {}
        self._media: dict[tuple[str, type[MediumRecord]], MediumSummary] = {}
        self._buffer: list[ScalarRow] = []
        self._n_buffered_values = 0
        self._rows = self._values = self._superseded = 0
        self._last_step = self._last_epoch = -1
        self._first_time, self._last_time = 1 << 63, -1
        self._dropped = {segment: SegmentDroppedCounts() for segment in self._lengths}
        self._partial = PartialRows()
        self._unread: dict[str, LineRange] = {}

    def run(self) -> RunSummary:
        done, total = 0, sum(self._lengths.values())
        for segment, length in self._lengths.items():
            for read in self._read_segment(segment, length):
                self._on_progress(done + read, total)
            done += length
            self._on_progress(done, total)
        self._summarize_buffer()
        broken = {name for name, end in segment_states(self._journal).items() if end.is_broken}
        partial_counts = [
            (segment, len(row.values))
            for segment, row in self._partial.rows()
            if not self._rewinds.supersedes_partial(segment, row)
        ]
        has_rows = self._last_time >= 0
        return RunSummary(
            series={name: self._series_summary(name) for name in self._stats},
            media=list(self._media.values()),
            rows=self._rows,
            values=self._values,
            superseded=self._superseded,
            partial_rows=sum(count for _, count in partial_counts),
            pending_partial=sum(count for segment, count in partial_counts if segment in broken),
            last_step=self._last_step if has_rows else None,
            epochs=self._last_epoch + 1,
            first_time=self._first_time if has_rows else None,
            last_time=self._last_time if has_rows else None,
            dropped=total_dropped(self._dropped.values()),
            damaged=self._reader.damaged,
            torn=self._reader.torn_bytes(),
            lengths=self._lengths,
        )

    def _series_summary(self, name: str) -> SeriesSummary:
        stats = self._stats[name]
        return SeriesSummary(
            name=name,
            count=stats.count,
            nan=stats.nan,
            last=stats.last,
            min=stats.low if stats.numbers else None,
            max=stats.high if stats.numbers else None,
            mean=stats.mean,
            first_step=stats.min_step,
            last_step=stats.max_step,
            course=self._courses.get(name) or Course(),
        )

    def _read_segment(self, segment: str, length: int) -> Iterator[int]:
        """Process a segment, and yield the number of bytes read so far now and then."""
        line = start = 0
        if not self._with_courses or length >= _MIN_BYTES_WITH_BLOCKS:
            for block in self._reader.blocks(segment):
                self._process_block(segment, block)
                line, start = block.end_line, block.lines.end
                yield start
        for row in self._reader.read_range(segment, LineRange(line, start, length)):
            self._process(row)
            if row.line % _ROWS_PER_REPORT == 0:
                yield row.end
        for row in self._reader.read_range(segment, self._unread.pop(segment, _NO_LINES)):
            self._partial.update(row)

    def _process_block(self, segment: str, block: Block) -> None:
        is_superseded = self._rewinds.supersedes_block(segment, block)
        if is_superseded is None:
            for row in self._reader.read_range(segment, block.lines):
                self._process(row)
            return
        self._summarize_buffer()
        self._partial.add_names(segment, block.series)
        for lines in block.not_scalars:
            for row in self._reader.read_range(segment, lines):
                self._process(row)
        if block.partial:
            # Names in the rest of the block were emitted after all.
            after = LineRange(block.partial.line + 1, block.partial.end, block.lines.end)
            self._unread[segment] = after
        if is_superseded:
            self._superseded += block.values
        elif block.rows:
            self._rows += block.rows
            self._values += block.values
            self._add_extremes(block.max_step, block.max_epoch, block.min_time, block.max_time)
            for name, stats in block.series.items():
                self._add_stats(name, stats)
                if self._with_courses:
                    self._courses[name].add_part(stats.count, stats.low, stats.high)

    def _process(self, row: Row) -> None:
        record = row.record
        self._partial.update(row)
        if isinstance(record, Epoch):
            self._last_epoch = max(self._last_epoch, record.epoch)
        elif isinstance(record, PartialAggregates):
            self._unread.pop(row.segment, None)
        if not isinstance(record, ScalarRow | MediumRecord):
            self._dropped[row.segment].update(record)
            return
        values = count_values(record)
        if self._rewinds and self._rewinds.supersedes(row.segment, row.line, record):
            self._superseded += values
            return
        self._values += values
        self._add_extremes(record.step, record.epoch, record.time, record.time)
        if isinstance(record, MediumRecord):
            self._add_medium(with_rank_prefix(record))
            return
        self._rows += 1
        self._buffer.append(record)
        self._n_buffered_values += values
        if self._n_buffered_values >= _MAX_BUFFERED_VALUES:
            self._summarize_buffer()

    def _add_extremes(self, step: int, epoch: int, first_time: int, last_time: int) -> None:
        self._last_step = max(self._last_step, step)
        self._last_epoch = max(self._last_epoch, epoch)
        self._first_time = min(self._first_time, first_time)
        self._last_time = max(self._last_time, last_time)

    def _summarize_buffer(self) -> None:
        for name, (values, steps) in columns_of(self._buffer).items():
            self._add_stats(name, stats_of(values, steps))
            if self._with_courses:
                self._courses[name].add(values)
        self._buffer, self._n_buffered_values = [], 0

    def _add_stats(self, name: str, stats: SeriesStats) -> None:
        if name not in self._stats:
            self._stats[name] = SeriesStats()
            if self._with_courses:
                self._courses[name] = Course()
        self._stats[name].merge(stats)

    def _add_medium(self, record: MediumRecord) -> None:
        key = record.name, type(record)
        rows = record.rows if isinstance(record, TableRecord) else 0
        previous = self._media.get(key)
        self._media[key] = MediumSummary(
            name=record.name,
            count=1 + (previous.count if previous else 0),
            first_step=min(record.step, previous.first_step if previous else record.step),
            last_step=max(record.step, previous.last_step if previous else record.step),
            rows=rows + (previous.rows if previous else 0),
            newest=record,
        )

"""Summarizes everything that a run logged, in one pass over its journal.

Rows are not kept, so memory is bounded by the number of names. Values that a rewind supersedes are
left out, as in `metricbus.read`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from metricbus._common.media_records import MediumRecord, TableRecord
from metricbus._common.records import Epoch, ScalarRow, count_values, with_rank_prefix
from metricbus._history.series_summary import SeriesSummarizer, SeriesSummary
from metricbus._journal.crash_recovery import partial_rows, segment_states
from metricbus._journal.dropped_counts import RunDroppedCounts, SegmentDroppedCounts, total_dropped
from metricbus._journal.rewind import find_rewinds
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import JournalReader, OnProgress, Row

_ROWS_PER_REPORT = 5_000


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
    counts the bytes after them. `damaged` is the number of lines that could not be decoded.
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
    def journal_values(self) -> int:
        """The number of values in the journal, including superseded ones: sinks receive both."""
        return self.values + self.superseded


def summarize_run(folder: RunFolder, on_progress: OnProgress | None = None) -> RunSummary:
    """Read the whole journal and summarize it.

    Raises `JournalError` or `OSError` if the journal cannot be read.
    """
    return _SummaryPass(folder, on_progress or (lambda done, total: None)).run()


class _SummaryPass:
    def __init__(self, folder: RunFolder, on_progress: OnProgress) -> None:
        self._journal = folder.journal
        self._reader = JournalReader(folder.journal)
        self._on_progress = on_progress
        self._segments = self._reader.segments()
        self._total_bytes = self._reader.unread_bytes()
        self._rewinds = find_rewinds(folder.journal)
        self._has_rewinds = bool(self._rewinds)
        self._series = SeriesSummarizer()
        self._media: dict[tuple[str, type[MediumRecord]], MediumSummary] = {}
        self._rows = self._values = self._superseded = 0
        self._last_step = self._last_epoch = -1
        self._first_time, self._last_time = 1 << 63, -1
        self._lengths: dict[str, int] = {}
        self._dropped = {segment: SegmentDroppedCounts() for segment in self._segments}

    def run(self) -> RunSummary:
        partial_counts = [
            (segment, len(row.values))
            for segment, row in partial_rows(self._read())
            if not self._rewinds.supersedes_partial(segment, row)
        ]
        broken = {name for name, end in segment_states(self._journal).items() if end.is_broken}
        has_rows = self._last_time >= 0
        return RunSummary(
            series=self._series.summaries(),
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
            torn=max(0, self._total_bytes - sum(self._lengths.values())),
            lengths=self._lengths,
        )

    def _read(self) -> Iterator[Row]:
        """Process each row, then yield it."""
        earlier_bytes = 0
        for segment in self._segments:
            length = 0
            for row in self._reader.read_segment(segment):
                self._process(row)
                yield row
                length = row.end
                if row.line % _ROWS_PER_REPORT == 0:
                    self._on_progress(earlier_bytes + length, self._total_bytes)
            self._lengths[segment] = length
            earlier_bytes += length
            self._on_progress(earlier_bytes, self._total_bytes)

    def _process(self, row: Row) -> None:
        record = row.record
        if isinstance(record, Epoch):
            self._last_epoch = max(self._last_epoch, record.epoch)
        if not isinstance(record, ScalarRow | MediumRecord):
            self._dropped[row.segment].update(record)
            return
        values = count_values(record)
        if self._has_rewinds and self._rewinds.supersedes(row.segment, row.line, record):
            self._superseded += values
            return
        self._values += values
        self._last_step = max(self._last_step, record.step)
        self._last_epoch = max(self._last_epoch, record.epoch)
        self._first_time = min(self._first_time, record.time)
        self._last_time = max(self._last_time, record.time)
        record = with_rank_prefix(record)
        if isinstance(record, ScalarRow):
            self._rows += 1
            self._series.add(record)
        else:
            self._add_medium(record)

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

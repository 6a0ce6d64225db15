"""Reads the journal for one sink: filtered batches of records, and the progress after each.

A batch counts once it is committed. Until then the reader can roll back and read the same batch, or
a smaller one, again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import msgspec

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import (
    PartialAggregates,
    Rewind,
    ScalarRow,
    count_values,
    with_rank_prefix,
)
from metricbus._common.wakeup import yield_gil
from metricbus._delivery.cursor import DeliveryProgress, Ledger
from metricbus._delivery.row_filter import RowFilter
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.crash_recovery import partial_rows, segment_states
from metricbus._journal.rewind import Rewinds
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import NO_LINE, JournalReader, Row

_ROWS_PER_GIL_YIELD = 100
_SUPERSEDED = PartialAggregates(time=0, rows=[])  # a record that no sink receives

# Bounds the memory of a batch: a thousand rows of ten thousand names would take a gigabyte.
_MAX_VALUES = 50_000


class Batch(NamedTuple):
    """Some rows of the journal, as far as they concern the sink.

    `lines` is the number of rows, `records` what the sink receives. `values` counts the values for
    the sink and `filtered` the excluded ones; `segments` counts both, by segment. `damaged` lines
    could not be decoded. `partial` counts the partial rows, by segment.
    """

    lines: int
    records: list[Any]
    values: int
    filtered: int
    segments: dict[str, int]
    damaged: int
    partial: dict[str, int]


class BatchReader:
    """Reads the batches of one sink and keeps its ledger.

    If `yields_gil` is set, it yields the GIL regularly, for a training loop in the same process.
    """

    def __init__(self, folder: RunFolder, spec: SinkSpec, *, yields_gil: bool = False) -> None:
        self._yields_gil = yields_gil
        self._journal = folder.journal
        self._options = spec.options
        self._sink_kind = spec.kind
        self._record_kinds = spec.sink.kinds
        initial = DeliveryProgress(
            sink=spec.canonical, destination=spec.destination, selection=spec.selection
        )
        path = folder.offsets / f"{spec.key}.json"
        self.ledger = Ledger(path, initial, keep_order=spec.sink.dedup == "position")
        self._limit = spec.options.batch_size
        self.roll_back()

    @property
    def progress(self) -> DeliveryProgress:
        """The progress after the last committed batch."""
        return self.ledger.written

    def next(self, *, ended: bool) -> Batch | None:
        """Return the next batch, or None if there is nothing new.

        Once the run has `ended`, the partial rows of processes that died come last.
        """
        try:
            rows = self._next_rows(ended=ended)
            if rows:
                self.ledger.begin(rows, self._reader.ahead)
        except BaseException:
            self.roll_back()
            raise
        return self._batch_of(rows) if rows else None

    def _next_rows(self, *, ended: bool) -> list[Row]:
        replay = self._reader.ahead
        rows = self._read_rows()
        if not rows and replay and replay[0].partial:
            span = replay.pop(0)
            count = span.line - self._processed_partial_rows(span.segment)
            rows = self._partial_rows_of(span.segment)[:count]
        if not rows and ended:
            states = segment_states(self._journal)
            if not any(state.is_open for state in states.values()):
                rows = self.partial_rows()[: self._limit]
        return rows

    def _read_rows(self) -> list[Row]:
        rows: list[Row] = []
        values = 0
        for row in self._reader.read(self._limit):
            self._maybe_yield_gil(len(rows))
            rows.append(row)
            values += 0 if row.record is None else count_values(row.record)
            if values >= _MAX_VALUES:
                break
        return rows

    def _maybe_yield_gil(self, index: int) -> None:
        if self._yields_gil and index % _ROWS_PER_GIL_YIELD == _ROWS_PER_GIL_YIELD - 1:
            yield_gil()

    def partial_rows(self) -> list[Row]:
        """Return undelivered partial rows of one process that died; empty if there are none."""
        for segment, state in segment_states(self._journal).items():
            if state.is_broken and (rows := self._partial_rows_of(segment)):
                return rows
        return []

    def _partial_rows_of(self, segment: str) -> list[Row]:
        """Return the unprocessed partial rows of a segment; superseded ones are empty."""
        rows = partial_rows(JournalReader(self._journal).read_segment(segment))
        rows = rows[self._processed_partial_rows(segment) :]
        if not rows:
            return []
        rewinds = Rewinds(JournalReader(self._journal).read())
        return [
            Row(
                segment,
                NO_LINE,
                0,
                _SUPERSEDED if rewinds.supersedes_partial(segment, row) else row,
            )
            for _, row in rows
        ]

    def _processed_partial_rows(self, segment: str) -> int:
        return self.progress.partial.get(segment, 0)

    def commit(
        self,
        batch: Batch,
        state: dict[str, Any],
        records: int,
        lease: int | None = None,
        *,
        rejected: bool = False,
    ) -> None:
        """Count the batch as delivered, or as rejected.

        `state` is that of the sink, and `records` counts the records since it was opened.
        """
        before = self.progress
        progress = msgspec.structs.replace(
            before,
            state=state,
            seen=dict(self._filter.seen),
            delivered=before.delivered + (0 if rejected else batch.values),
            rejected=before.rejected + (batch.values if rejected else 0),
            filtered=before.filtered + batch.filtered,
            values=dict(Counter(before.values) + Counter(batch.segments)),
            damaged=before.damaged + batch.damaged,
            partial=dict(Counter(before.partial) + Counter(batch.partial)),
            positions=dict(self._reader.positions),
            lease=lease or before.lease,
            closed=None,
            replay=[],
        )
        self.ledger.commit(progress, records)
        self._limit = min(self._limit * 2, self._options.batch_size)

    def roll_back(self) -> None:
        """Return to the last committed batch."""
        self._reader = self.ledger.reader(self._journal)
        self._filter = RowFilter(self._options, dict(self.progress.seen))

    def halve(self, batch: Batch) -> None:
        """Roll back, and read at most half of the batch's rows next."""
        self._limit = max(1, batch.lines // 2)
        self.roll_back()

    def roll_back_to_acknowledged(self) -> None:
        """Return to the last batch that the backend has acknowledged."""
        self.ledger.roll_back()
        self.roll_back()

    def has_more(self) -> bool:
        """Check whether the journal has unread bytes, be it in whole lines or torn ones."""
        return self._reader.unread_bytes() > 0

    def _batch_of(self, rows: list[Row]) -> Batch:
        records: list[Any] = []
        filtered = damaged = 0
        segments: dict[str, int] = {}
        for index, row in enumerate(rows):
            self._maybe_yield_gil(index)
            record = with_rank_prefix(row.record)
            if isinstance(record, ScalarRow):
                values = len(record.values)
                segments[row.segment] = segments.get(row.segment, 0) + values
                selected = self._filter.apply(record) if self._is_for_sink(record) else None
                filtered += values - (len(selected.values) if selected else 0)
                if selected:
                    records.append(selected)
            elif isinstance(record, MediumRecord):
                segments[row.segment] = segments.get(row.segment, 0) + 1
                if self._accepts_medium(record):
                    records.append(record)
                else:
                    filtered += 1
            elif record is None:
                damaged += 1
            elif isinstance(record, self._record_kinds) and not _is_rewind_of_one_rank(record):
                records.append(record)
        partial = Counter(row.segment for row in rows if row.line == NO_LINE)
        values = sum(segments.values()) - filtered
        return Batch(len(rows), records, values, filtered, segments, damaged, partial)

    def _accepts_medium(self, medium: MediumRecord) -> bool:
        is_for_sink = isinstance(medium, self._record_kinds) and self._is_for_sink(medium)
        return is_for_sink and self._filter.accepts(medium.name)

    def _is_for_sink(self, record: ScalarRow | MediumRecord) -> bool:
        return not record.sinks or self._sink_kind in record.sinks


def _is_rewind_of_one_rank(record: object) -> bool:
    """Check for a rewind that supersedes the rows of a single rank; sinks cannot express it."""
    return isinstance(record, Rewind) and record.rank > 0

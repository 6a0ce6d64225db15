"""Reads the journal for one sink: filtered batches of records, and the progress after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import (
    Header,
    PartialAggregates,
    Rewind,
    ScalarRow,
    count_values,
    with_rank_prefix,
)
from metricbus._common.wakeup import yield_gil
from metricbus._delivery.offsets_file import DeliveryProgress
from metricbus._delivery.row_filter import RowFilter
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.crash_recovery import partial_rows, segment_states
from metricbus._journal.rewind import Rewinds
from metricbus._journal.segment_reader import NO_LINE, JournalReader, Row, Span

_ROWS_PER_GIL_YIELD = 100
_SUPERSEDED = PartialAggregates(time=0, rows=[])  # a record that no sink receives

# Bounds the memory of a batch: a thousand rows of ten thousand names would take a gigabyte.
_MAX_VALUES = 50_000


class Batch(NamedTuple):
    """Some rows of the journal, as far as they concern the sink.

    `records` is what the sink receives; they contain `values` values. `after` is the progress once
    the batch counts.
    """

    rows: list[Row]
    records: list[Any]
    values: int
    after: DeliveryProgress


class BatchReader:
    """Reads batches for one sink, starting after `progress`.

    `ahead` is the order of an earlier reader, which is repeated first. If `yields_gil` is set, it
    yields the GIL regularly, for a training loop in the same process.
    """

    def __init__(
        self,
        journal: Path,
        spec: SinkSpec,
        progress: DeliveryProgress,
        ahead: Iterable[Span],
        *,
        yields_gil: bool,
    ) -> None:
        self._journal = journal
        self._spec = spec
        self._reader = JournalReader(journal, progress.positions, ahead)
        self._filter = RowFilter(spec.options, dict(progress.seen))
        self._yields_gil = yields_gil

    def read(
        self,
        before: DeliveryProgress,
        limit: int,
        rejected_rows: Collection[Span],
        *,
        ended: bool,
    ) -> Batch | None:
        """Return the next batch of up to `limit` rows, or None if there is nothing new.

        `before` is the progress after the previous batch. Values of `rejected_rows` count as
        rejected. Once the run has `ended`, the partial rows of processes that died come last.
        """
        rows = self._next_rows(before, limit, ended=ended)
        return self._batch_of(rows, before, rejected_rows) if rows else None

    def _next_rows(self, before: DeliveryProgress, limit: int, *, ended: bool) -> list[Row]:
        ahead = self._reader.ahead
        rows = self._read_rows(limit)
        while not rows and ahead and ahead[0].partial:
            span = ahead[0]
            processed = before.partial.get(span.segment, 0)
            count = min(limit, max(0, span.line - processed))
            rows = self._partial_rows_of(span.segment, processed)[:count]
            if not rows or processed + len(rows) >= span.line:
                ahead.pop(0)
                rows = rows or self._read_rows(limit)
        if not rows and ended:
            states = segment_states(self._journal)
            if not any(state.is_open for state in states.values()):
                rows = self.partial_rows(before)[:limit]
        return rows

    def _read_rows(self, limit: int) -> list[Row]:
        rows: list[Row] = []
        values = 0
        for row in self._reader.read(limit):
            self._maybe_yield_gil(len(rows))
            rows.append(row)
            values += 0 if row.record is None else count_values(row.record)
            if values >= _MAX_VALUES:
                break
        return rows

    def _maybe_yield_gil(self, index: int) -> None:
        if self._yields_gil and index % _ROWS_PER_GIL_YIELD == _ROWS_PER_GIL_YIELD - 1:
            yield_gil()

    def partial_rows(self, before: DeliveryProgress) -> list[Row]:
        """Return unprocessed partial rows of one process that died; empty if there are none."""
        for segment, state in segment_states(self._journal).items():
            processed = before.partial.get(segment, 0)
            if state.is_broken and (rows := self._partial_rows_of(segment, processed)):
                return rows
        return []

    def _partial_rows_of(self, segment: str, processed: int) -> list[Row]:
        """Return the unprocessed partial rows of a segment; superseded ones are empty.

        Only rewinds that were read before count, so that a repetition returns the same rows.
        """
        rows = partial_rows(JournalReader(self._journal).read_segment(segment))
        if len(rows) <= processed:
            return []
        lines = {name: position.line for name, position in self._reader.positions.items()}
        headers_and_rewinds = JournalReader(self._journal).rows((Header, Rewind))
        rewinds = Rewinds(
            row for row in headers_and_rewinds if row.line < lines.get(row.segment, 0)
        )
        return [
            Row(
                segment,
                NO_LINE - index,
                0,
                _SUPERSEDED if rewinds.supersedes_partial(segment, row) else row,
            )
            for index, (_, row) in enumerate(rows)
            if index >= processed
        ]

    def has_more(self) -> bool:
        """Check whether the journal has unread bytes, be it in whole lines or torn ones."""
        return self._reader.unread_bytes() > 0

    def _batch_of(
        self, rows: list[Row], before: DeliveryProgress, rejected_rows: Collection[Span]
    ) -> Batch:
        records: list[Any] = []
        filtered = rejected = damaged = 0
        segments: Counter[str] = Counter()
        for index, row in enumerate(rows):
            self._maybe_yield_gil(index)
            record = row.record
            if record is None:
                damaged += 1
                continue
            total = count_values(record)
            segments[row.segment] += total
            selected = self._select(with_rank_prefix(record))
            values = 0 if selected is None else count_values(selected)
            filtered += total - values
            if rejected_rows and span_of(row) in rejected_rows:
                rejected += values
            elif selected is not None:
                records.append(selected)
        delivered = sum(segments.values()) - filtered - rejected
        partial = Counter(row.segment for row in rows if row.line <= NO_LINE)
        after = msgspec.structs.replace(
            before,
            seen=dict(self._filter.seen),
            delivered=before.delivered + delivered,
            rejected=before.rejected + rejected,
            filtered=before.filtered + filtered,
            values=dict(Counter(before.values) + segments),
            damaged=before.damaged + damaged,
            partial=dict(Counter(before.partial) + partial),
            positions=dict(self._reader.positions),
            closed=None,
        )
        return Batch(rows, records, delivered, after)

    def _select(self, record: Any) -> Any:
        """Return the part of the record that the sink receives; None if there is none."""
        if not isinstance(record, self._spec.sink.kinds):
            return None
        if isinstance(record, ScalarRow):
            return self._filter.apply(record) if self._is_for_sink(record) else None
        if isinstance(record, MediumRecord):
            is_selected = self._is_for_sink(record) and self._filter.accepts(record.name)
            return record if is_selected else None
        # The rewind of a single rank supersedes only its rows, which sinks cannot express.
        return None if isinstance(record, Rewind) and record.rank > 0 else record

    def _is_for_sink(self, record: ScalarRow | MediumRecord) -> bool:
        return not record.sinks or self._spec.kind in record.sinks


def span_of(row: Row) -> Span:
    """Return the span that ends with this row."""
    if row.line <= NO_LINE:
        return Span(row.segment, NO_LINE - row.line + 1, partial=True)
    return Span(row.segment, row.line + 1)

"""What comes next for one sink: batches of the journal's rows, filtered, and the progress made.

A batch counts as soon as it is `done`. Until then the feed can go back and make the same batch, or
a smaller one, again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import msgspec

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import PartialAggregates, Rewind, Scalars, count_values, with_rank_prefix
from metricbus._common.wakeup import yield_gil
from metricbus._delivery.cursor import DeliveryProgress, Ledger
from metricbus._delivery.row_filter import RowFilter
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.recovery import endings, partial_rows
from metricbus._journal.rewind import Rewinds
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import NO_LINE, JournalReader, Row

_ROWS_A_BREATH = 100
_NOTHING = PartialAggregates(time=0, rows=[])
_MOST_VALUES = 50_000  # in a batch: a thousand rows of ten thousand names would take a gigabyte


class Batch(NamedTuple):
    """Some lines of the journal, as far as they concern the sink.

    `values` is how many are for the sink, `filtered` how many are not; `segments` has both, by
    where they come from. `damaged` lines could not be read. `partial` counts the rows that were
    in open reductions, by segment.
    """

    lines: int
    records: list[Any]
    values: int
    filtered: int
    segments: dict[str, int]
    damaged: int
    partial: dict[str, int]


class BatchReader:
    """Reads one sink's batches, and keeps the ledger.

    If `gently`, it lets go of the interpreter now and then, for the training in the same process.
    """

    def __init__(self, folder: RunFolder, spec: SinkSpec, *, gently: bool = False) -> None:
        self._gently = gently
        self._journal = folder.journal
        self._options = spec.options
        self._kind = spec.kind
        self._kinds = spec.sink.kinds
        empty = DeliveryProgress(sink=spec.canonical, place=spec.place, selection=spec.selection)
        path = folder.offsets / f"{spec.key}.json"
        self.ledger = Ledger(path, empty, ordered=spec.sink.dedup == "position")
        self._limit = spec.options.batch_size
        self.go_back()

    @property
    def progress(self) -> DeliveryProgress:
        """What is done."""
        return self.ledger.done

    def next(self, *, ended: bool) -> Batch | None:
        """The next batch; None if there is nothing new.

        Once the run has ended, what was in the reductions of processes that died comes last.
        """
        try:
            rows = self._next(ended=ended)
            if rows:
                self.ledger.intend(rows, self._reader.ahead)
        except BaseException:
            self.go_back()  # what has been read counts as not read
            raise
        return self._batch_of(rows) if rows else None

    def _next(self, *, ended: bool) -> list[Row]:
        ahead = self._reader.ahead
        rows = self._read()
        if not rows and ahead and ahead[0].partial:
            span = ahead.pop(0)
            rows = self._left_open(span.segment)[: span.line - self._partial(span.segment)]
        if not rows and ended:
            segments = endings(self._journal)
            if not any(ending.is_open for ending in segments.values()):
                rows = self.partial_rows()[: self._limit]
        return rows

    def _read(self) -> list[Row]:
        rows: list[Row] = []
        values = 0
        for row in self._reader.read(self._limit):
            self._breathe(len(rows))
            rows.append(row)
            values += 0 if row.record is None else count_values(row.record)
            if values >= _MOST_VALUES:
                break
        return rows

    def _breathe(self, number: int) -> None:
        if self._gently and number % _ROWS_A_BREATH == _ROWS_A_BREATH - 1:
            yield_gil()

    def partial_rows(self) -> list[Row]:
        """What was in open reductions when a process died, and has not been delivered yet."""
        for segment, ending in endings(self._journal).items():
            if ending.is_broken and (rows := self._left_open(segment)):
                return rows
        return []

    def _left_open(self, segment: str) -> list[Row]:
        """The rest of what one segment held; what is superseded counts, and is empty."""
        found = partial_rows(JournalReader(self._journal).read_segment(segment))
        rest = found[self._partial(segment) :]
        if not rest:
            return []
        rewinds = Rewinds(JournalReader(self._journal).read())
        return [
            Row(segment, NO_LINE, 0, _NOTHING if rewinds.supersede_partial(segment, row) else row)
            for _, row in rest
        ]

    def _partial(self, segment: str) -> int:
        return self.progress.partial.get(segment, 0)

    def done(
        self,
        batch: Batch,
        state: dict[str, Any],
        given: int,
        lease: int | None = None,
        *,
        rejected: bool = False,
    ) -> None:
        """The batch is delivered, or rejected; `given` is how many records the sink has had."""
        done = self.progress
        progress = msgspec.structs.replace(
            done,
            state=state,
            seen=dict(self._filter.seen),
            delivered=done.delivered + (0 if rejected else batch.values),
            rejected=done.rejected + (batch.values if rejected else 0),
            filtered=done.filtered + batch.filtered,
            values=dict(Counter(done.values) + Counter(batch.segments)),
            damaged=done.damaged + batch.damaged,
            partial=dict(Counter(done.partial) + Counter(batch.partial)),
            positions=dict(self._reader.positions),
            lease=lease or done.lease,
            closed=None,
            ahead=[],
        )
        self.ledger.add(progress, given)
        self._limit = min(self._limit * 2, self._options.batch_size)

    def go_back(self) -> None:
        """To what is done."""
        self._reader = self.ledger.reader(self._journal)
        self._filter = RowFilter(self._options, dict(self.progress.seen))

    def halve(self, batch: Batch) -> None:
        """Goes back, to take at most half of the batch's lines."""
        self._limit = max(1, batch.lines // 2)
        self.go_back()

    def fall_back(self) -> None:
        """To what is settled."""
        self.ledger.fall_back()
        self.go_back()

    def has_more(self) -> bool:
        """Whether the journal has anything that was not read yet, whole or torn."""
        return self._reader.unread_bytes() > 0

    def _batch_of(self, rows: list[Row]) -> Batch:
        records: list[Any] = []
        filtered = damaged = 0
        segments: dict[str, int] = {}
        for number, row in enumerate(rows):
            self._breathe(number)
            record = with_rank_prefix(row.record)
            if isinstance(record, Scalars):
                values = len(record.values)
                segments[row.segment] = segments.get(row.segment, 0) + values
                kept = self._filter.apply(record) if self._is_for_us(record) else None
                filtered += values - (len(kept.values) if kept else 0)
                if kept:
                    records.append(kept)
            elif isinstance(record, MediumRecord):
                segments[row.segment] = segments.get(row.segment, 0) + 1
                if self._takes(record):
                    records.append(record)
                else:
                    filtered += 1
            elif record is None:
                damaged += 1
            elif isinstance(record, self._kinds) and not _is_of_one_rank(record):
                records.append(record)
        partial = Counter(row.segment for row in rows if row.line == NO_LINE)
        values = sum(segments.values()) - filtered
        return Batch(len(rows), records, values, filtered, segments, damaged, partial)

    def _takes(self, medium: MediumRecord) -> bool:
        wanted = isinstance(medium, self._kinds) and self._is_for_us(medium)
        return wanted and self._filter.takes(medium.name)

    def _is_for_us(self, row: Scalars | MediumRecord) -> bool:
        return not row.sinks or self._kind in row.sinks


def _is_of_one_rank(record: object) -> bool:
    """A rewind that no step has to do with; whoever reads the journal understands it."""
    return isinstance(record, Rewind) and record.rank > 0

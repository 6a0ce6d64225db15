"""What a run logged, in a few numbers a name: `summarize_run` reads the journal once and keeps no rows.

Memory is bounded, by the names and not by the rows.
What a rewind went back before is left out, as by `metricbus.read`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from metricbus._common.media_records import MediumRecord, TableRecord
from metricbus._common.records import (
    DECODE_ERRORS,
    Epoch,
    Scalars,
    decode,
    count_values,
    with_rank_prefix,
)
from metricbus._history.series_summary import AllSeries, SeriesSummary
from metricbus._journal.dropped_counts import RunDroppedCounts, SegmentDroppedCounts, total_dropped
from metricbus._journal.recovery import endings, partial_rows
from metricbus._journal.rewind import Rewinds
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import SUFFIX, JournalReader, OnProgress, Row

_ROWS_A_REPORT = 5_000


class MediumSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The media of one kind under one name; `rows` are those of all parts of tables."""

    name: str
    count: int
    first_step: int
    last_step: int
    rows: int
    newest: MediumRecord


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run logged.

    `values` are those that count, media among them; `superseded` ones were left out after a rewind.
    `partial_rows` were in reductions when their process died (or are, in a live run). `first_time` and
    `last_time` are of the first and the last row, in nanoseconds since 1970-01-01 UTC. `lengths`
    has the bytes of each segment's whole lines, `torn` is how many stand after those. `damaged`
    lines could not be read.
    """

    series: dict[str, SeriesSummary]
    media: list[MediumSummary]
    rows: int
    values: int
    superseded: int
    partial_rows: int
    pending_partial: int  # of what was left open: what only comes once the run is over
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
        """All values in the journal's rows: what is delivered, superseded or not."""
        return self.values + self.superseded


def summarize_run(folder: RunFolder, on_progress: OnProgress | None = None) -> RunSummary:
    """Reads the whole journal once; `JournalError` or `OSError` where that cannot be done."""
    return _SummaryPass(folder, on_progress or (lambda done, total: None)).summary()


class _SummaryPass:
    """One pass through the journal."""

    def __init__(self, folder: RunFolder, on_progress: OnProgress) -> None:
        self._journal = folder.journal
        self._reader = JournalReader(folder.journal)
        self._on_progress = on_progress
        self._segments = self._reader.segments()
        self._bytes = _bytes_in(folder.journal)  # of a live run: those that there are now
        self._rewinds = Rewinds(_rewinds_and_headers(folder.journal, self._segments))
        self._has_rewinds = bool(self._rewinds)
        self._series = AllSeries()
        self._media: dict[tuple[str, type[MediumRecord]], MediumSummary] = {}
        self._rows = self._values = self._superseded = 0
        self._last_step = self._last_epoch = -1
        self._first_time, self._last_time = 1 << 63, -1
        self._lengths: dict[str, int] = {}
        self._drops = {segment: SegmentDroppedCounts() for segment in self._segments}

    def summary(self) -> RunSummary:
        """Reads everything."""
        opened = partial_rows(self._read())
        left = [
            (segment, len(row.values))
            for segment, row in opened
            if not self._rewinds.supersede_partial(segment, row)
        ]
        broken = {name for name, end in endings(self._journal).items() if end.is_broken}
        began = self._last_time >= 0
        return RunSummary(
            series=self._series.summaries(),
            media=list(self._media.values()),
            rows=self._rows,
            values=self._values,
            superseded=self._superseded,
            partial_rows=sum(values for _, values in left),
            pending_partial=sum(values for segment, values in left if segment in broken),
            last_step=self._last_step if began else None,
            epochs=self._last_epoch + 1,
            first_time=self._first_time if began else None,
            last_time=self._last_time if began else None,
            dropped=total_dropped(self._drops.values()),
            damaged=self._reader.damaged,
            torn=max(0, self._bytes - sum(self._lengths.values())),
            lengths=self._lengths,
        )

    def _read(self) -> Iterator[Row]:
        """All rows; each is taken before it is passed on."""
        before = 0
        for segment in self._segments:
            length = 0
            for row in self._reader.read_segment(segment):
                self._take(row)
                yield row
                length = row.end
                if row.line % _ROWS_A_REPORT == 0:
                    self._on_progress(before + length, self._bytes)
            self._lengths[segment] = length
            before += length
            self._on_progress(before, self._bytes)

    def _take(self, row: Row) -> None:
        record = row.record
        if isinstance(record, Epoch):
            self._last_epoch = max(self._last_epoch, record.epoch)
        if not isinstance(record, Scalars | MediumRecord):
            self._drops[row.segment].update(record)
            return
        values = count_values(record)
        if self._has_rewinds and self._rewinds.supersede(row.segment, row.line, record):
            self._superseded += values
            return
        self._values += values
        self._last_step = max(self._last_step, record.step)
        self._last_epoch = max(self._last_epoch, record.epoch)
        self._first_time = min(self._first_time, record.time)
        self._last_time = max(self._last_time, record.time)
        record = with_rank_prefix(record)
        if isinstance(record, Scalars):
            self._rows += 1
            self._series.add(record)
        else:
            self._take_medium(record)

    def _take_medium(self, record: MediumRecord) -> None:
        key = record.name, type(record)
        rows = record.rows if isinstance(record, TableRecord) else 0
        so_far = self._media.get(key)
        self._media[key] = MediumSummary(
            name=record.name,
            count=1 + (so_far.count if so_far else 0),
            first_step=min(record.step, so_far.first_step if so_far else record.step),
            last_step=max(record.step, so_far.last_step if so_far else record.step),
            rows=rows + (so_far.rows if so_far else 0),
            newest=record,
        )


def _rewinds_and_headers(journal: Path, segments: list[str]) -> Iterator[Row]:
    """The lines from which `Rewinds` learns, and a few others; the rest is not decoded."""
    for segment in segments:
        with open(journal / (segment + SUFFIX), "rb") as file:
            for number, line in enumerate(file):
                if (number == 0 or b'"rewind"' in line) and line.endswith(b"\n"):
                    try:
                        yield Row(segment, number, 0, decode(line))
                    except DECODE_ERRORS:
                        continue


def _bytes_in(journal: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(journal) if entry.name.endswith(SUFFIX))

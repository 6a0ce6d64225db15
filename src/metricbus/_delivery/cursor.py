"""Tracks how far a sink is, and saves it in one small offsets file per sink.

Two positions are tracked: what the sink has written, and what of it is acknowledged, which means
that it survives the death of this process and of the backend's own processes. For a file, the two
are the same. Only acknowledged progress is saved; everything after it is delivered again after a
crash.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common.files import replace_file
from metricbus._common.records import Status
from metricbus._delivery.report import Progress
from metricbus._journal.segment_reader import NO_LINE, JournalReader, Position, Row, Span

_log = logging.getLogger("metricbus.delivery")


class DeliveryProgress(Progress, kw_only=True, frozen=True):
    """The progress of a sink, as saved in its offsets file.

    * `sink`: the canonical URL, without secrets; `destination`: identifies what it writes to.
    * `selection`: the options that select rows; `seen`: the count of each name, for `every`.
    * `state`: the sink's own state, which `Sink.open` needs to resume.
    * `partial`: the number of processed partial rows, by segment.
    * `lease`: the number of the lease under which this was saved.
    * `closed`: the status with which the sink was closed after all this; `where` and `command` are
      those that it had then.
    * `replay`: the order in which the lines after `positions` were read and may have been written.
      A sink that recognizes rows by their position must receive them in this order again.
    """

    sink: str
    destination: str = msgspec.field(default="", name="place")
    selection: str = ""
    state: dict[str, Any] = msgspec.field(default_factory=dict)
    seen: dict[str, int] = msgspec.field(default_factory=dict)
    partial: dict[str, int] = msgspec.field(default_factory=dict)
    lease: int = 0
    closed: Status | None = None
    where: str = ""
    command: str = ""
    replay: list[Span] = msgspec.field(default_factory=list, name="ahead")


decode_progress = msgspec.json.Decoder(DeliveryProgress).decode


class Ledger:
    """The progress of one sink: `written`, and the part of it that is `acknowledged` and saved.

    If `keep_order` is set, for a sink with `dedup = "position"`, the ledger also tracks the order
    in which rows were read. If the journal has several segments, it saves this order before a batch
    is written.
    """

    def __init__(self, path: Path, initial: DeliveryProgress, *, keep_order: bool) -> None:
        """Load the progress from `path`; without a file, start with `initial`."""
        self._path = path
        self._keep_order = keep_order
        self.acknowledged = self.written = load_progress(path, initial)
        # Each entry: the number of records written since the sink was opened, and the progress.
        self._unacknowledged: deque[tuple[int, DeliveryProgress]] = deque()
        # The order of reading: from acknowledged to written, in flight, and still to be repeated.
        self._written_spans: list[Span] = []
        self._in_flight: list[Span] = []
        self._replay = self.acknowledged.replay

    def begin(self, rows: Sequence[Row], replay: Sequence[Span]) -> None:
        """Note that these rows will be written next; `replay` is the order that remains after."""
        if self._keep_order:
            groups = groupby(rows, key=lambda row: (row.segment, row.line == NO_LINE))
            self._in_flight = [self._span_of(*key, list(group)) for key, group in groups]
            self._replay = list(replay)
            if len({span.segment for span in self._spans()} | self.written.positions.keys()) > 1:
                self._save()

    def _span_of(self, segment: str, partial: bool, rows: Sequence[Row]) -> Span:
        if partial:
            return Span(segment, self.written.partial.get(segment, 0) + len(rows), partial=True)
        return Span(segment, rows[-1].line + 1)

    def commit(self, progress: DeliveryProgress, records: int) -> None:
        """Mark the batch as written; `records` counts those written since the sink was opened."""
        self.written = progress
        self._unacknowledged.append((records, progress))
        if self._written_spans and self._in_flight:
            last, first = self._written_spans[-1], self._in_flight[0]
            if (last.segment, last.partial) == (first.segment, first.partial):
                self._written_spans.pop()
        self._written_spans += self._in_flight
        self._in_flight = []

    def acknowledge(self, records: int | None) -> None:
        """Save the progress up to this number of records; None means all.

        Raises `OSError` if it cannot be saved.
        """
        newest = None
        while self._unacknowledged and (records is None or self._unacknowledged[0][0] <= records):
            _, newest = self._unacknowledged.popleft()
        if newest is None:
            return
        self.acknowledged = newest
        self._written_spans = [span for span in self._written_spans if not _covers(newest, span)]
        self._save()

    def close(self, status: Status, where: str, command: str) -> None:
        """Save that everything is acknowledged and that the sink was closed."""
        self.acknowledge(None)
        self.acknowledged = self.written = msgspec.structs.replace(
            self.written, closed=status, where=where, command=command
        )
        self._save()

    def is_acknowledged(self) -> bool:
        """Check whether everything that was written is acknowledged."""
        return not self._unacknowledged

    def reader(self, journal: Path) -> JournalReader:
        """Return a reader that starts after what was written and repeats the original order."""
        self._replay, self._in_flight = [*self._in_flight, *self._replay], []
        return JournalReader(journal, self.written.positions, self._replay)

    def roll_back(self) -> None:
        """Treat everything that is not acknowledged as not written."""
        self._unacknowledged.clear()
        self.written = self.acknowledged
        self._in_flight, self._written_spans = [*self._written_spans, *self._in_flight], []

    def _spans(self) -> list[Span]:
        return [*self._written_spans, *self._in_flight, *self._replay]

    def _save(self) -> None:
        save_progress(self._path, msgspec.structs.replace(self.acknowledged, replay=self._spans()))


def _covers(progress: DeliveryProgress, span: Span) -> bool:
    if span.partial:
        return progress.partial.get(span.segment, 0) >= span.line
    return progress.positions.get(span.segment, Position()).line >= span.line


def load_progress(path: Path, initial: DeliveryProgress) -> DeliveryProgress:
    """Load the progress saved at `path`, or return `initial` if there is none.

    A file that cannot be decoded, for example after a power failure, counts as missing: sinks
    recognize repeated records.
    """
    try:
        return decode_progress(path.read_bytes())
    except FileNotFoundError:
        return initial
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning("cannot read %s (%s); delivering the run from the beginning", path, error)
        return initial


def find_conflict(folder: Path, own: DeliveryProgress) -> str | None:
    """Return the URL of a sink that has written other rows to the same destination."""
    for path in sorted(folder.glob("*.json")):
        other = load_progress(path, own)
        is_same = other.destination == own.destination
        if is_same and other.selection != own.selection and other.positions:
            return other.sink
    return None


def save_progress(path: Path, progress: DeliveryProgress) -> None:
    """Replace the file at `path` atomically."""
    replace_file(path, msgspec.json.encode(progress))

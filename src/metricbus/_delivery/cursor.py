"""How far a sink has come, kept in one small file per sink in the run's folder.

Two things are told apart: what the sink has taken, and what of it is settled, so that it survives
the death of this process and of the backend's own. For a file the two are the same. Only what is
settled is saved; the rest is delivered again after a crash.
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
from metricbus._journal.segment_reader import NO_LINE, JournalReader, Position, Row, Span

_log = logging.getLogger("metricbus.delivery")


class DeliveryProgress(msgspec.Struct, kw_only=True, frozen=True):
    """A sink's progress: everything before `positions` is done, in one way or another.

    `sink` is the canonical URL, without secrets; `place` what it writes to, `selection` which rows
    it leaves out; `lease` the number of that under which this was saved. `state` is what the sink
    itself needs to go on from there, `seen` how often each name came (for `every=`), `partial` how
    many rows of what was open in a broken segment. The counts are in values; `values` has them by
    segment, all outcomes together. `ahead` is the order in which the lines after `positions` were
    read and may have been written: a sink that knows rows by their place must get them in that
    order again. `closed` is the status with which the sink was closed after all this; `where` and
    `command` are what it then told people.
    """

    sink: str
    place: str = ""
    selection: str = ""
    positions: dict[str, Position] = {}
    state: dict[str, Any] = {}
    seen: dict[str, int] = {}
    partial: dict[str, int] = {}
    values: dict[str, int] = {}
    delivered: int = 0
    rejected: int = 0
    filtered: int = 0
    damaged: int = 0
    lease: int = 0
    closed: Status | None = None
    where: str = ""
    command: str = ""
    ahead: list[Span] = []


class Ledger:
    """What a sink has `done`, what of it is `acknowledged` and saved, and in which order it was read.

    The order matters to sinks that know rows by their place (`dedup = "position"`), and only where a journal
    has several segments; there it is written down before a batch is written.
    """

    def __init__(self, path: Path, empty: DeliveryProgress, *, ordered: bool) -> None:
        """Loads the progress at `path`; `empty` is that of a sink which has seen nothing."""
        self._path = path
        self._ordered = ordered
        self.acknowledged = self.done = load_progress(path, empty)
        self._unsettled: deque[tuple[int, DeliveryProgress]] = (
            deque()
        )  # with the records up to each
        self._order: list[Span] = []  # from what is settled to what is done
        self._tried: list[Span] = []  # the batch that is being written
        self._ahead = self.acknowledged.ahead  # how it once went on, and has to again

    def intend(self, rows: Sequence[Row], ahead: Sequence[Span]) -> None:
        """These rows are going to be written; of the given order, `ahead` is left after them."""
        if self._ordered:
            groups = groupby(rows, key=lambda row: (row.segment, row.line == NO_LINE))
            self._tried = [self._span_of(*key, list(group)) for key, group in groups]
            self._ahead = list(ahead)
            if len({span.segment for span in self._spans()} | self.done.positions.keys()) > 1:
                self._save()

    def _span_of(self, segment: str, partial: bool, rows: Sequence[Row]) -> Span:
        if partial:
            return Span(segment, self.done.partial.get(segment, 0) + len(rows), partial=True)
        return Span(segment, rows[-1].line + 1)

    def add(self, progress: DeliveryProgress, records: int) -> None:
        """The batch is done; `records` is how many the sink was given since it was opened."""
        self.done = progress
        self._unsettled.append((records, progress))
        if self._order and self._tried:
            last, first = self._order[-1], self._tried[0]
            if (last.segment, last.partial) == (first.segment, first.partial):
                self._order.pop()
        self._order += self._tried
        self._tried = []

    def settle(self, records: int | None) -> None:
        """So many of the records are settled (all, if None); `OSError` if that cannot be saved."""
        newest = None
        while self._unsettled and (records is None or self._unsettled[0][0] <= records):
            _, newest = self._unsettled.popleft()
        if newest is None:
            return
        self.acknowledged = newest
        self._order = [span for span in self._order if not _covers(newest, span)]
        self._save()

    def close(self, status: Status, where: str, command: str) -> None:
        """Everything is done and settled, and the sink is closed."""
        self.settle(None)
        self.acknowledged = self.done = msgspec.structs.replace(
            self.done, closed=status, where=where, command=command
        )
        self._save()

    def is_settled(self) -> bool:
        """Whether all that is done is settled."""
        return not self._unsettled

    def reader(self, journal: Path) -> JournalReader:
        """A reader that goes on after what is done, in the order in which that once happened."""
        self._ahead, self._tried = [*self._tried, *self._ahead], []
        return JournalReader(journal, self.done.positions, self._ahead)

    def fall_back(self) -> None:
        """What is not settled is not done either."""
        self._unsettled.clear()
        self.done = self.acknowledged
        self._tried, self._order = [*self._order, *self._tried], []

    def _spans(self) -> list[Span]:
        return [*self._order, *self._tried, *self._ahead]

    def _save(self) -> None:
        save_progress(self._path, msgspec.structs.replace(self.acknowledged, ahead=self._spans()))


def _covers(progress: DeliveryProgress, span: Span) -> bool:
    if span.partial:
        return progress.partial.get(span.segment, 0) >= span.line
    return progress.positions.get(span.segment, Position()).line >= span.line


def load_progress(path: Path, empty: DeliveryProgress) -> DeliveryProgress:
    """The progress saved at `path`; if there is none, that of a sink which has seen nothing.

    A file that cannot be read (a power cut) counts as none: sinks recognise what comes again.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=DeliveryProgress)
    except FileNotFoundError:
        return empty
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning("%s cannot be read (%s): delivering from the beginning", path, error)
        return empty


def other_at(folder: Path, own: DeliveryProgress) -> str | None:
    """Another sink's URL that has written other rows to the same place."""
    for path in sorted(folder.glob("*.json")):
        other = load_progress(path, own)
        if other.place == own.place and other.selection != own.selection and other.positions:
            return other.sink
    return None


def save_progress(path: Path, progress: DeliveryProgress) -> None:
    """Replaces the file as a whole."""
    replace_file(path, msgspec.json.encode(progress))

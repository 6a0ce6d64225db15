"""The journal: append-only segments of JSON lines in a run's folder.

A segment has exactly one writer, and nobody ever appends to a segment that another process began:
it may end in a torn line. So there are no locks, and network file systems are safe.

* A batch is written whole, by one `write` as a rule, into the page cache: what has been written
  survives the death of the process, not that of the machine.
* A batch is in the segment or it is not. When a write fails half-way (a full disk), the segment is
  cut back to its last whole batch before anything else is written.
* A reader takes whole lines only. An unfinished last line is left for later; a line that is no
  record is counted as damaged and passed over.

docs/journal.md describes the format for readers in other languages.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import msgspec

from metricbus._common.files import AppendFile
from metricbus._common.processes import this_process
from metricbus._common.records import (
    FORMAT_VERSION,
    Drops,
    End,
    Header,
    Record,
    Status,
    decode,
    encode,
)
from metricbus._common.throttled_log import ThrottledLogger
from metricbus.errors import JournalError

_log = logging.getLogger("metricbus.journal")

SUFFIX = ".jsonl"
NOT_A_LINE = (msgspec.DecodeError, KeyError, UnicodeDecodeError)  # what `decode` raises for one
NO_LINE = -1  # of a row that stands in no line of its own
_READ_BYTES = 1 << 20

OnProgress: TypeAlias = Callable[[int, int], None]
"""Is told now and then how many bytes have been read, and of how many."""


class Position(msgspec.Struct, frozen=True):
    """How far a reader is in one segment: lines taken, and the byte at which the next begins."""

    line: int = 0
    offset: int = 0


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The lines of a segment before `line`, as far as they have not been read.

    Or as many rows of what was open in it when it broke off (`partial`).
    """

    segment: str
    line: int
    partial: bool = False


class Row(msgspec.Struct, frozen=True, gc=False):
    """One line with its identity, the pair (segment, line); `record` is None if it is damaged."""

    segment: str
    line: int
    end: int  # the byte after the line
    record: Record | None


class Journal(Protocol):
    """Where a collector's records go."""

    @property
    def segment(self) -> str:
        """Its name."""
        ...

    @property
    def lines(self) -> int:
        """How many lines it has."""
        ...

    @property
    def length(self) -> int:
        """How many bytes of it count."""
        ...

    def append(self, records: Sequence[Record]) -> None:
        """Writes the records, all or none; `OSError` if it cannot now."""

    def sync(self) -> None:
        """Forces what was written onto the disk, if that is wanted."""

    def close(self, status: Status = "finished", dropped: Drops | None = None) -> None:
        """Marks the end, and says what was dropped, where that is known."""


class SegmentWriter:
    """Writes one new segment of `folder`; `append` is all or nothing."""

    def __init__(
        self,
        folder: Path,
        run: str,
        rank: int = 0,
        attempt: int = 1,
        fsync: Literal["never", "flush", "always"] = "never",
    ) -> None:
        """Claims a segment and writes its header; `OSError` where that cannot be done.

        `fsync` says when what was written is forced onto the disk, against a power cut: at each
        `append`, at each `sync`, or never.
        """
        self._file, self.segment = _create_segment(folder)
        self.lines = 0
        self._fsync = fsync
        self._complaints = ThrottledLogger(_log)
        writer = this_process()
        header = Header(
            format=FORMAT_VERSION,
            run=run,
            segment=self.segment,
            host=writer.host,
            pid=writer.pid,
            process_started=writer.started,
            rank=rank,
            attempt=attempt,
            time=time.time_ns(),
        )
        self.append([header])

    def append(self, records: Sequence[Record]) -> None:
        """Writes the records as whole lines. `OSError`: none of them is in the journal."""
        self._file.append(encode(records))
        self.lines += len(records)
        if self._fsync == "always":
            self._force()

    def sync(self) -> None:
        """Forces what was written onto the disk, if that is wanted."""
        if self._fsync == "flush":
            self._force()

    def _force(self) -> None:
        try:
            self._file.sync()
        except OSError as error:  # it is written, and only a power cut would show the difference
            self._complaints.warn("the journal may not be safe from a power cut: %s", error)

    @property
    def length(self) -> int:
        """The bytes that count: what a reader has when it has read everything."""
        return self._file.length

    def close(self, status: Status = "finished", dropped: Drops | None = None) -> None:
        """Marks the segment as ended, where that can still be written, and lets go of the file."""
        try:
            self.append([End(status=status, time=time.time_ns(), dropped=dropped)])
            self.sync()
        finally:
            self._file.close()


def _create_segment(folder: Path) -> tuple[AppendFile, str]:
    """Claims the next free number; creation is exclusive, so two writers never share a file."""
    taken = [int(path.stem) for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal()]
    number = max(taken, default=0)
    while True:
        number += 1
        segment = f"{number:04d}"
        try:
            return AppendFile(folder / (segment + SUFFIX), new=True), segment
        except FileExistsError:
            continue


class JournalReader:
    """Reads the rows of all segments of `folder`, in the order of each, from given positions.

    The same object can be asked again and again while the run is live: it goes on where it was and
    finds segments that have come since. `ahead` is an order in which to read before anything else:
    that of an earlier reader.
    """

    def __init__(
        self,
        folder: Path,
        positions: dict[str, Position] | None = None,
        ahead: Iterable[Span] = (),
    ) -> None:
        self._folder = folder
        self.positions: dict[str, Position] = dict(positions or {})
        self.ahead = list(ahead)
        self.damaged = 0

    def segments(self) -> list[str]:
        """The names of the segments there are, oldest first."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            raise JournalError(f"the journal {self._folder} is missing") from None
        return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))

    def read(self, limit: int = 1 << 62) -> Iterator[Row]:
        """Up to `limit` rows that have not been read yet, and moves past them as they are taken.

        Headers and end marks are rows too, so that line numbers are those of the file.
        """
        for row in self._in_order():
            self.positions[row.segment] = Position(row.line + 1, row.end)
            yield row
            limit -= 1
            if limit <= 0:
                return

    def _in_order(self) -> Iterator[Row]:
        while self.ahead:
            span = self.ahead[0]
            if span.partial:
                return  # in no line of the journal: for whoever asked for this order
            if self.positions.get(span.segment, Position()).line < span.line:
                for row in self._read_segment(span.segment):
                    yield row
                    if row.line + 1 >= span.line:
                        break
            self.ahead.pop(0)
        for segment in self.segments():
            yield from self._read_segment(segment)

    def unread_bytes(self) -> int:
        """Bytes beyond the positions: 0 when everything whole and torn has been seen."""
        return sum(
            os.path.getsize(self._path(segment)) - self.positions.get(segment, Position()).offset
            for segment in self.segments()
        )

    def read_segment(self, segment: str) -> Iterator[Row]:
        """All rows of one segment after its position, which stays where it is."""
        return self._read_segment(segment)

    def _path(self, segment: str) -> Path:
        return self._folder / (segment + SUFFIX)

    def _read_segment(self, segment: str) -> Iterator[Row]:
        at = self.positions.get(segment, Position())
        line_number, offset = at.line, at.offset
        path = self._path(segment)
        if os.path.getsize(path) <= offset:
            return
        with open(path, "rb") as file:
            file.seek(offset)
            for line in _whole_lines(file.read):
                offset += len(line) + 1
                yield Row(segment, line_number, offset, self._decode(line, segment))
                line_number += 1

    def _decode(self, line: bytes, segment: str) -> Record | None:
        try:
            record = decode(line)
        except NOT_A_LINE:
            self.damaged += 1
            return None
        if isinstance(record, Header) and record.format > FORMAT_VERSION:
            raise JournalError(
                f"segment {segment} is in format {record.format}, this metricbus reads up to "
                f"{FORMAT_VERSION}: pip install --upgrade metricbus"
            )
        return record


def _whole_lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The lines that end in a newline, without it; a last one that does not is not finished yet."""
    rest = b""
    while chunk := read(_READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines

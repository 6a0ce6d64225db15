"""Reads the segments of a run's journal, also while they are being written.

Only whole lines are read. An unfinished last line is left for a later read; a line that cannot be
decoded is skipped and counted as damaged. docs/journal.md describes the file format.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from metricbus._common.records import FORMAT_VERSION, Header, Record, decode_or_none
from metricbus.errors import JournalError

SUFFIX = ".jsonl"
NO_LINE = -1
"""The line number of a row that is not a line of the journal: a partial row."""

_READ_BYTES = 1 << 20

OnProgress: TypeAlias = Callable[[int, int], None]
"""Progress callback. Receives the number of bytes read so far and the total number."""


class Position(msgspec.Struct, frozen=True):
    """A reader's position in one segment: lines read, and the byte where the next line starts."""

    line: int = 0
    offset: int = 0


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The unread lines of a segment before `line`.

    If `partial` is set, it is instead the first `line` partial rows of a segment whose writer died.
    """

    segment: str
    line: int
    partial: bool = False


class Row(msgspec.Struct, frozen=True, gc=False):
    """One journal line, identified by (segment, line); `record` is None if it is damaged."""

    segment: str
    line: int
    end: int  # offset of the byte after the line
    record: Record | None


class JournalReader:
    """Reader of all segments of `folder`, each in its own order, starting at given positions.

    The same object can be read repeatedly while the run is live: it resumes at its positions and
    finds new segments. `ahead` is read first: the order of an earlier reader, to be repeated.
    """

    def __init__(
        self, folder: Path, positions: dict[str, Position] | None = None, ahead: Iterable[Span] = ()
    ) -> None:
        self._folder = folder
        self.positions: dict[str, Position] = dict(positions or {})
        self.ahead = list(ahead)
        self.damaged = 0

    def segments(self) -> list[str]:
        """Return the names of the existing segments, oldest first."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            raise JournalError(f"the journal {self._folder} is missing") from None
        return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))

    def read(self, limit: int = 1 << 62) -> Iterator[Row]:
        """Yield up to `limit` unread rows; the position moves past each row as it is yielded.

        Headers and end records are rows too, so line numbers are those of the file.
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
                return  # partial rows are not lines: the caller handles this span
            if self.positions.get(span.segment, Position()).line < span.line:
                for row in self.read_segment(span.segment):
                    yield row
                    if row.line + 1 >= span.line:
                        break
            self.ahead.pop(0)
        for segment in self.segments():
            yield from self.read_segment(segment)

    def unread_bytes(self) -> int:
        """Return the number of bytes after the positions; torn lines count as unread."""
        return sum(
            os.path.getsize(self._path(segment)) - self.positions.get(segment, Position()).offset
            for segment in self.segments()
        )

    def read_segment(self, segment: str) -> Iterator[Row]:
        """Yield all rows of one segment after its position, without moving the position."""
        start = self.positions.get(segment, Position())
        line_number, offset = start.line, start.offset
        path = self._path(segment)
        if os.path.getsize(path) <= offset:
            return
        with open(path, "rb") as file:
            file.seek(offset)
            for line in _whole_lines(file.read):
                offset += len(line) + 1
                yield Row(segment, line_number, offset, self._decode(line, segment))
                line_number += 1

    def _path(self, segment: str) -> Path:
        return self._folder / (segment + SUFFIX)

    def _decode(self, line: bytes, segment: str) -> Record | None:
        record = decode_or_none(line)
        self.damaged += record is None
        if isinstance(record, Header) and record.format > FORMAT_VERSION:
            raise JournalError(
                f"segment {segment} has format {record.format}, but this metricbus reads formats "
                f"up to {FORMAT_VERSION}: pip install --upgrade metricbus"
            )
        return record


def _whole_lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the lines that end in a newline, without it."""
    rest = b""
    while chunk := read(_READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines

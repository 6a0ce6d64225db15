"""Reads the segments of a run's journal, also while they are being written.

Only whole lines are read. An unfinished last line is left for a later read; a line that cannot be
decoded is skipped and counted as damaged. docs/journal.md describes the file format.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec

from metricbus._common.records import (
    FORMAT_VERSION,
    Header,
    Record,
    ScalarRow,
    decode_or_none,
)
from metricbus._journal.segment_summary import Block, LineRange, read_blocks, summary_path
from metricbus._journal.tail import end_of_last_line, lines_backwards
from metricbus.errors import JournalError

SUFFIX = ".jsonl"
NO_LINE = -1
"""The line number of a row that is not a line of the journal: a partial row."""

_READ_BYTES = 1 << 20
_ROWS_PER_REPORT = 5_000
_TO_THE_END = 1 << 62
_KIND = b'{"kind":"'

OnProgress: TypeAlias = Callable[[int, int], None]
"""Progress callback. Receives the number of bytes read so far and the total number."""

ReplaceBlock: TypeAlias = Callable[[str, Block], Iterable[ScalarRow] | None]
"""Receives a segment and a block of it. Returns rows instead of the block's; None to read it."""


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

    def rows(
        self,
        kinds: Sequence[type[msgspec.Struct]] = (),
        matches: Callable[[str], bool] = lambda name: True,
        on_progress: OnProgress = lambda done, total: None,
        replace: ReplaceBlock | None = None,
    ) -> Iterator[Row]:
        """Yield the rows of all segments, or only those whose record is one of `kinds`.

        Rows of scalars without a name that `matches` may be left out, and so may partial aggregates
        that later ones replace: parts of the journal without other rows, as its summary shows, are
        not read. `replace` may return rows to be yielded instead of the scalars of a block. The
        positions are neither used nor moved. Of a live run, the rows are yielded that exist when
        the first one is.
        """
        lengths = self.lengths()
        done, total = 0, sum(lengths.values())
        for segment, length in lengths.items():
            for count, row in enumerate(self._rows(segment, length, kinds, matches, replace)):
                if count % _ROWS_PER_REPORT == 0:
                    on_progress(done + row.end, total)
                yield row
            done += length
            on_progress(done, total)

    def _rows(
        self,
        segment: str,
        length: int,
        kinds: Sequence[type[msgspec.Struct]],
        matches: Callable[[str], bool],
        replace: ReplaceBlock | None,
    ) -> Iterator[Row]:
        line = start = 0
        if kinds:
            for block in self.blocks(segment):
                line, start = block.end_line, block.lines.end
                rows: Iterable[ScalarRow] | None = ()
                # A filter notes all names that there are.
                if ScalarRow in kinds and list(filter(matches, block.series)):
                    rows = replace(segment, block) if replace else None
                if rows is None:
                    yield from self.read_range(segment, block.lines, kinds)
                    continue
                for lines in block.not_scalars:
                    yield from self.read_range(segment, lines, kinds)
                for row in rows:
                    yield Row(segment, block.lines.line, start, row)
        yield from self.read_range(segment, LineRange(line, start, length), kinds)

    def blocks(self, segment: str) -> Iterator[Block]:
        """Yield the statistics of the blocks of a segment, from its beginning."""
        return read_blocks(self._path(segment), summary_path(self._folder, segment))

    def read_segment(self, segment: str) -> Iterator[Row]:
        """Yield all rows of one segment after its position, without moving the position."""
        start = self.positions.get(segment, Position())
        yield from self.read_range(segment, LineRange(start.line, start.offset, _TO_THE_END))

    def read_range(
        self, segment: str, lines: LineRange, kinds: Sequence[type[msgspec.Struct]] = ()
    ) -> Iterator[Row]:
        """Yield the rows in a range of lines, or only those whose record is one of `kinds`."""
        path = self._path(segment)
        if os.path.getsize(path) <= lines.start:
            return
        tags = tuple(f'{{"kind":"{kind.__struct_config__.tag}"'.encode() for kind in kinds)
        line_number, offset = lines.line, lines.start
        with open(path, "rb") as file:
            file.seek(offset)
            for line in _whole_lines(file, lines.end - offset):
                offset += len(line) + 1
                # A line that is whole and starts with another kind need not be decoded.
                is_other = kinds and line.startswith(_KIND) and not line.startswith(tags)
                if not is_other or not line.endswith(b"}"):
                    row = Row(segment, line_number, offset, self._decode(line, segment))
                    if not kinds or isinstance(row.record, tuple(kinds)):
                        yield row
                line_number += 1

    def backwards(self, segment: str, end: int) -> Iterator[Row]:
        """Yield the rows of a segment before offset `end`, the last one first.

        `end` must follow a newline. The numbers of the lines are unknown.
        """
        with open(self._path(segment), "rb") as file:
            for line in lines_backwards(file, end):
                yield Row(segment, NO_LINE, end, self._decode(line, segment))
                end -= len(line) + 1

    def lengths(self) -> dict[str, int]:
        """Return the number of bytes in the whole lines of each segment, oldest segment first."""
        lengths = {}
        for segment in self.segments():
            with open(self._path(segment), "rb") as file:
                lengths[segment] = end_of_last_line(file)
        return lengths

    def modified_ns(self) -> int:
        """Return when a segment was last written to, in ns since 1970-01-01 UTC; 0 if never."""
        return max((os.stat(self._path(name)).st_mtime_ns for name in self.segments()), default=0)

    def torn_bytes(self) -> int:
        """Return the number of bytes in unfinished last lines."""
        lengths = self.lengths()
        return sum(os.path.getsize(self._path(name)) - size for name, size in lengths.items())

    def unread_bytes(self) -> int:
        """Return the number of bytes after the positions; torn lines count as unread."""
        return sum(
            os.path.getsize(self._path(segment)) - self.positions.get(segment, Position()).offset
            for segment in self.segments()
        )

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


def _whole_lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yield the lines in the next `limit` bytes that end in a newline, without it."""
    rest = b""
    while chunk := file.read(min(_READ_BYTES, limit)):
        limit -= len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines

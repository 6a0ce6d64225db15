"""Statistics of the blocks of a segment, kept beside the journal in `summary/<segment>.jsonl`.

A block is a range of lines. When a block is large enough, the writer of the segment appends one
line: the statistics of each scalar series, and the positions of all other lines. With these, a
reader can summarize a long journal, or find media or a rarely logged name, by reading a hundredth
of it.

A summary is a cache. Readers ignore it from the first block that is damaged or does not fit the
journal, and read the journal itself instead.
"""

from __future__ import annotations

import io
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, cast
from zlib import crc32

import msgspec

from metricbus._common.files import AppendFile
from metricbus._common.records import (
    Number,
    PartialAggregates,
    Record,
    ScalarRow,
    with_rank_prefix,
)
from metricbus._journal.series_stats import SeriesStats, stats_of

_log = logging.getLogger("metricbus.journal")

# A block has at least this many bytes, or this share of the segment, if that is more: so the number
# of blocks grows with the logarithm of a long segment.
_MIN_BYTES = 1 << 16
_MIN_SHARE = 1 << 10
# The statistics of a series take as many bytes as about three values.
_MIN_VALUES_PER_SERIES = 64
# Rows are buffered up to these numbers, because chunks cost less than single rows.
_MAX_ROWS, _MAX_VALUES = 256, 1 << 16
_CHECKED_BYTES = 64
_ONLY_ROWS = frozenset((ScalarRow,))
_RANK, _START = attrgetter("rank"), attrgetter("start")
_MAX_HEADER_BYTES = 1 << 16


class LineRange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Consecutive lines of a segment: the number and the offset of the first, and their end."""

    line: int
    start: int
    end: int


class Block(msgspec.Struct, tag_field="kind", tag="block", omit_defaults=True, gc=False):
    """The statistics of consecutive lines of a segment.

    `lines` is their range, and `end_line` the number of the line after them. `rows` and `values`
    count the scalars, and `min_step` to `max_time` are the extremes over their rows. `partial` is
    the last line of partial aggregates, which replaces earlier ones, and `others` are the lines
    that are neither these nor scalars. `header` and `check` are checksums of the segment's first
    line and of the last bytes of the block.
    """

    lines: LineRange
    end_line: int
    header: int
    check: int = 0
    rows: int = 0
    values: int = 0
    min_step: int = 1 << 63
    max_step: int = -(1 << 63)
    max_epoch: int = -1
    min_time: int = 1 << 63
    max_time: int = -(1 << 63)
    series: dict[str, SeriesStats] = {}
    others: list[LineRange] = []
    partial: LineRange | None = None

    @property
    def not_scalars(self) -> list[LineRange]:
        """The lines of `others` and `partial`, in order."""
        lines = [*self.others, self.partial] if self.partial else self.others
        return sorted(lines, key=_START)

    def add(self, rows: Sequence[ScalarRow]) -> None:
        """Append the statistics of rows."""
        if not rows:
            return
        times = [row.time for row in rows]
        self.rows += len(rows)
        self.max_epoch = max(self.max_epoch, *[row.epoch for row in rows])
        self.min_time, self.max_time = min(self.min_time, *times), max(self.max_time, *times)
        for name, (column, steps) in columns_of(rows).items():
            stats = stats_of(column, steps)
            self.values += stats.count
            self.min_step = min(self.min_step, stats.min_step)
            self.max_step = max(self.max_step, stats.max_step)
            if name in self.series:
                self.series[name].merge(stats)
            else:
                self.series[name] = stats


def columns_of(rows: Sequence[ScalarRow]) -> Mapping[str, tuple[list[Number], list[int]]]:
    """Return the values and their steps by name, with its rank; in the order of the rows."""
    if any(map(_RANK, rows)):
        rows = [with_rank_prefix(row) for row in rows]
    values = [row.values for row in rows]
    if len(set(map(len, values))) == 1:
        steps = [row.step for row in rows]
        try:
            return {name: ([row[name] for row in values], steps) for name in values[0]}
        except KeyError:
            pass  # not all rows have the same names
    columns: dict[str, tuple[list[Number], list[int]]] = defaultdict(lambda: ([], []))
    for row in rows:
        for name, value in row.values.items():
            column, column_steps = columns[name]
            column.append(value)
            column_steps.append(row.step)
    return columns


class SummaryWriter:
    """Writes the blocks of one segment; `add` everything that is appended to it, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: AppendFile | None = None
        self._header = 0
        self._min_bytes = _MIN_BYTES
        self._rows: list[ScalarRow] = []  # not in the block yet
        self._n_buffered_values = 0
        self._last_bytes = b""
        self._end = self._end_line = 0
        self._block = self._new_block()

    def add(self, records: Sequence[Record], data: bytes) -> None:
        """Add records and their encoding, after it has been appended to the segment."""
        if not self._end:
            self._header = self._block.header = crc32(data.partition(b"\n")[0])
        if _ONLY_ROWS.issuperset(map(type, records)):
            rows = cast(Sequence[ScalarRow], records)
        else:
            rows = [record for record in records if isinstance(record, ScalarRow)]
            self._note_others(records, data)
        self._rows += rows
        self._end_line += len(records)
        self._end += len(data)
        self._last_bytes = (self._last_bytes + data[-_CHECKED_BYTES:])[-_CHECKED_BYTES:]
        # Adjacent rows have similar numbers of values.
        self._n_buffered_values += len(rows) * len(rows[-1].values) if rows else 0
        if len(self._rows) >= _MAX_ROWS or self._n_buffered_values >= _MAX_VALUES:
            self._summarize_rows()
            if self._end - self._block.lines.start >= max(self._min_bytes, self._end // _MIN_SHARE):
                self._write()

    def close(self) -> None:
        """Write the last block, if it has enough values."""
        self._summarize_rows()
        self._write()
        if self._file is not None:
            self._file.close()

    def _new_block(self) -> Block:
        return Block(LineRange(self._end_line, self._end, 0), 0, self._header)

    def _note_others(self, records: Sequence[Record], data: bytes) -> None:
        others, end = self._block.others, self._end
        for line, (record, text) in enumerate(
            zip(records, data.splitlines(keepends=True), strict=True), self._end_line
        ):
            start, end = end, end + len(text)
            if isinstance(record, PartialAggregates):
                self._block.partial = LineRange(line, start, end)
            elif type(record) is not ScalarRow:
                adjacent = others.pop() if others and others[-1].end == start else None
                first = adjacent or LineRange(line, start, end)
                others.append(LineRange(first.line, first.start, end))

    def _summarize_rows(self) -> None:
        rows, self._rows, self._n_buffered_values = self._rows, [], 0
        self._block.add(rows)

    def _write(self) -> None:
        """Write the block, if it has enough values for its number of series."""
        block = self._block
        if block.values < _MIN_VALUES_PER_SERIES * len(block.series):
            return
        block.lines = LineRange(block.lines.line, block.lines.start, self._end)
        block.end_line, block.check = self._end_line, crc32(self._last_bytes)
        try:
            if self._file is None:
                self._path.parent.mkdir(exist_ok=True)
                self._path.unlink(missing_ok=True)
                self._file = AppendFile(self._path, new=True)
            self._file.append(_encode(block))
        except OSError as error:
            # The statistics remain in the block, which is written when it has twice the size.
            self._min_bytes = 2 * (self._end - block.lines.start)
            _log.info("cannot write %s: %s", self._path, error)
            return
        self._min_bytes = _MIN_BYTES
        self._block = self._new_block()


def summary_path(journal: Path, segment: str) -> Path:
    """Return the path of a segment's summary."""
    return journal.parent / "summary" / f"{segment}.jsonl"


def read_blocks(segment_path: Path, summary: Path) -> Iterator[Block]:
    """Yield the blocks of a summary, as far as they fit the segment.

    Raises `OSError` if the segment cannot be read.
    """
    with open(segment_path, "rb") as segment, _open_or_empty(summary) as blocks:
        size = os.fstat(segment.fileno()).st_size
        header = crc32(segment.readline(_MAX_HEADER_BYTES).rstrip(b"\n"))
        previous = None
        # The statistics of a block are smaller than the block.
        while (line := blocks.readline(size + 1)).endswith(b"\n"):
            block = _decode(line)
            if block is None or block.header != header or not _follows(block, previous, size):
                return
            if not _has_check(segment, block):
                return
            yield block
            previous = block


def _open_or_empty(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError:
        return io.BytesIO()


def _follows(block: Block, previous: Block | None, size: int) -> bool:
    """Check that a block starts where the previous one ends, and its ranges are in it, in order."""
    start = (previous.end_line, previous.lines.end) if previous else (0, 0)
    parts = chain.from_iterable((lines.start, lines.end) for lines in block.not_scalars)
    edges = [block.lines.start, *parts]
    edges += [block.lines.end, size]
    is_ordered = all(first <= second for first, second in pairwise(edges))
    return start == (block.lines.line, block.lines.start) and is_ordered


def _has_check(file: BinaryIO, block: Block) -> bool:
    start = max(0, block.lines.end - _CHECKED_BYTES)
    return crc32(os.pread(file.fileno(), block.lines.end - start, start)) == block.check


def _encode(block: Block) -> bytes:
    line = msgspec.json.encode(block)
    # msgspec encodes NaN and the infinities as null, and nothing else in a block.
    if b"null" in line:
        series = {name: stats.as_json() for name, stats in block.series.items()}
        line = msgspec.json.encode(msgspec.structs.replace(block, series=series))
    return line + b"\n"


_decoder = msgspec.json.Decoder(Block)


def _decode(line: bytes) -> Block | None:
    try:
        block = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if b'"NaN"' in line or b'Infinity"' in line:
        block.series = {name: stats.from_json() for name, stats in block.series.items()}
    return block

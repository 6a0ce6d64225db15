"""The last rows of a journal, found from the ends of its segments, however long they are."""

from __future__ import annotations

from heapq import merge
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, TypeAlias

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import (
    DECODE_ERRORS,
    Record,
    Rewind,
    Scalars,
    decode,
    with_rank_prefix,
)
from metricbus._history.name_filter import NameFilter
from metricbus._journal.segment_reader import SUFFIX, JournalReader, Position
from metricbus._journal.tail import end_of_lines, lines_backwards

TailRecord: TypeAlias = Scalars | MediumRecord | Rewind


def select_record(record: Record | None, wanted: NameFilter) -> TailRecord | None:
    """What a reader is to see of a record: of rows and media what is wanted, and rewinds."""
    if isinstance(record, Scalars):
        return wanted.part_of(with_rank_prefix(record))
    if isinstance(record, MediumRecord):
        return wanted.part_of(with_rank_prefix(record))
    return record if isinstance(record, Rewind) else None


def last_rows(
    journal: Path, count: int, wanted: NameFilter
) -> tuple[list[TailRecord], dict[str, Position]]:
    """The last `count` rows of all segments by their times, those of each in its own order.

    And where each segment is read up to: for a `JournalReader` to go on there. (It counts lines
    from there, too: nothing before has been counted.)

    Raises `JournalError` if there is no journal, `OSError` if it cannot be read.
    """
    positions: dict[str, Position] = {}
    found: list[list[TailRecord]] = []
    for segment in JournalReader(journal).segments():
        with open(journal / (segment + SUFFIX), "rb") as file:
            end = end_of_lines(file)
            positions[segment] = Position(0, end)
            found.append(_last_of(file, end, count, wanted))
    rows = list(merge(*found, key=attrgetter("time")))
    return rows[len(rows) - min(count, len(rows)) :], positions


def _last_of(file: BinaryIO, end: int, count: int, wanted: NameFilter) -> list[TailRecord]:
    rows: list[TailRecord] = []
    lines = lines_backwards(file, end)
    while len(rows) < count and (line := next(lines, None)) is not None:
        try:
            row = select_record(decode(line), wanted)
        except DECODE_ERRORS:
            continue
        if row is not None:
            rows.append(row)
    return rows[::-1]

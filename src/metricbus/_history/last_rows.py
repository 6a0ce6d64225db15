"""Reads the last rows of a journal from the ends of its segments, without reading the rest."""

from __future__ import annotations

from heapq import merge
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, TypeAlias

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import Record, Rewind, ScalarRow, decode_or_none, with_rank_prefix
from metricbus._history.name_filter import NameFilter
from metricbus._journal.segment_reader import SUFFIX, JournalReader, Position
from metricbus._journal.tail import end_of_last_line, lines_backwards

TailRecord: TypeAlias = ScalarRow | MediumRecord | Rewind


def select_record(record: Record | None, name_filter: NameFilter) -> TailRecord | None:
    """Return the part of a record that matches the filter, or the whole record if it is a rewind.

    Returns None for anything else.
    """
    if isinstance(record, ScalarRow | MediumRecord):
        return name_filter.filter_record(with_rank_prefix(record))
    return record if isinstance(record, Rewind) else None


def last_rows(
    journal: Path, count: int, name_filter: NameFilter
) -> tuple[list[TailRecord], dict[str, Position]]:
    """Return the last `count` matching rows, and the position after them in each segment.

    Rows of different segments are ordered by time; rows of one segment keep their order. Pass the
    positions to a `JournalReader` to read what is written later. Their line numbers start at 0,
    because the earlier lines are not counted.

    Raises `JournalError` if there is no journal, and `OSError` if it cannot be read.
    """
    positions: dict[str, Position] = {}
    rows_by_segment: list[list[TailRecord]] = []
    for segment in JournalReader(journal).segments():
        with open(journal / (segment + SUFFIX), "rb") as file:
            end = end_of_last_line(file)
            positions[segment] = Position(0, end)
            rows_by_segment.append(_last_rows_of_segment(file, end, count, name_filter))
    rows = list(merge(*rows_by_segment, key=attrgetter("time")))
    return rows[len(rows) - min(count, len(rows)) :], positions


def _last_rows_of_segment(
    file: BinaryIO, end: int, count: int, name_filter: NameFilter
) -> list[TailRecord]:
    rows: list[TailRecord] = []
    lines = lines_backwards(file, end)
    while len(rows) < count and (line := next(lines, None)) is not None:
        row = select_record(decode_or_none(line), name_filter)
        if row is not None:
            rows.append(row)
    return rows[::-1]

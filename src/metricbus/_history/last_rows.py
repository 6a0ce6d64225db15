"""Reads the last rows of a journal from the ends of its segments, without reading the rest."""

from __future__ import annotations

from heapq import merge
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import Record, Rewind, ScalarRow, with_rank_prefix
from metricbus._history.name_filter import NameFilter
from metricbus._journal.segment_reader import JournalReader, Position

TailRecord: TypeAlias = ScalarRow | MediumRecord | Rewind


def select_record(record: Record | None, name_filter: NameFilter) -> TailRecord | None:
    """Return the part of a record that matches the filter, or the whole record if it is a rewind.

    Returns None for anything else.
    """
    if isinstance(record, ScalarRow | MediumRecord):
        matching = name_filter.filter_record(record)
        return None if matching is None else with_rank_prefix(matching)
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
    reader = JournalReader(journal)
    rows_by_segment: list[list[TailRecord]] = []
    lengths = reader.lengths()
    for segment, length in lengths.items():
        rows: list[TailRecord] = []
        for row in reader.backwards(segment, length):
            if len(rows) >= count:
                break
            record = select_record(row.record, name_filter)
            if record is not None:
                rows.append(record)
        rows_by_segment.append(rows[::-1])
    merged = list(merge(*rows_by_segment, key=attrgetter("time")))
    positions = {segment: Position(0, length) for segment, length in lengths.items()}
    return merged[len(merged) - min(count, len(merged)) :], positions

"""Determines which rows the rewinds of a run supersede."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import Header, Rewind, ScalarRow
from metricbus._journal.segment_reader import JournalReader, Row
from metricbus._journal.segment_summary import Block

_AFTER_ALL_LINES = 1 << 62


class _Extent(NamedTuple):
    """The lines of one segment from `line` to `last_line`, and the steps and times in them."""

    line: int
    last_line: int
    min_step: int
    max_step: int
    min_time: int
    max_time: int


class _LocatedRewind(NamedTuple):
    """A rewind, with the segment, line and attempt in which it was written."""

    segment: str
    line: int
    attempt: int
    rewind: Rewind

    def supersedes(self, segment: str, attempt: int, rows: _Extent) -> tuple[bool, bool]:
        """Check whether it supersedes some of the rows, as far as can be seen, and whether all."""
        some_earlier, all_earlier = self._follows(segment, attempt, rows)
        is_origin = segment == self.rewind.segment
        is_between = 0 < self.rewind.attempt < attempt < self.attempt
        some_after = rows.max_step > self.rewind.step or is_between
        some_after |= is_origin and rows.last_line >= self.rewind.line
        all_after = rows.min_step > self.rewind.step or is_between
        all_after |= is_origin and rows.line >= self.rewind.line
        return some_earlier and some_after, all_earlier and all_after

    def _follows(self, segment: str, attempt: int, rows: _Extent) -> tuple[bool, bool]:
        """Check whether it was written after some, and after all rows.

        Clocks are only compared within one attempt.
        """
        if segment == self.segment:
            return rows.line < self.line, rows.last_line < self.line
        if attempt != self.attempt:
            return attempt < self.attempt, attempt < self.attempt
        return rows.min_time <= self.rewind.time, rows.max_time <= self.rewind.time


class Rewinds:
    """All rewinds of a run, found in the rows of its journal; false if there are none."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._attempts: dict[str, int] = {}
        self._rewinds: list[_LocatedRewind] = []
        for row in rows:
            if isinstance(row.record, Header):
                self._attempts[row.segment] = row.record.attempt
            elif isinstance(row.record, Rewind):
                attempt = self._attempts.get(row.segment, 1)
                self._rewinds.append(_LocatedRewind(row.segment, row.line, attempt, row.record))

    def __bool__(self) -> bool:
        return bool(self._rewinds)

    def supersedes(self, segment: str, line: int, row: ScalarRow | MediumRecord) -> bool:
        """Check whether any rewind supersedes the row at this line."""
        extent = _Extent(line, line, row.step, row.step, row.time, row.time)
        return self._supersedes(segment, extent) is True

    def supersedes_partial(self, segment: str, row: ScalarRow) -> bool:
        """Check whether any rewind supersedes a partial row of a segment whose writer died."""
        return self.supersedes(segment, _AFTER_ALL_LINES, row)

    def supersedes_block(self, segment: str, block: Block) -> bool | None:
        """Check whether all rows of scalars in a block are superseded, or none; None if some are.

        None may also be returned if a closer look at the rows would find all or none.
        """
        steps_and_times = block.min_step, block.max_step, block.min_time, block.max_time
        return self._supersedes(
            segment, _Extent(block.lines.line, block.end_line - 1, *steps_and_times)
        )

    def _supersedes(self, segment: str, rows: _Extent) -> bool | None:
        attempt = self._attempts.get(segment, 1)
        found = [located.supersedes(segment, attempt, rows) for located in self._rewinds]
        if any(all_rows for _, all_rows in found):
            return True
        return None if any(some_rows for some_rows, _ in found) else False


def find_rewinds(journal: Path) -> Rewinds:
    """Find the rewinds of a run."""
    return Rewinds(JournalReader(journal).rows((Header, Rewind)))

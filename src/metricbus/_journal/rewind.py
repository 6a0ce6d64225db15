"""Which rows are superseded: those that a rewind goes back before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import Header, Rewind, Scalars
from metricbus._journal.segment_reader import Row

_BEHIND_ALL_LINES = 1 << 62


class _At(NamedTuple):
    """A rewind, and where it stands."""

    segment: str
    line: int
    attempt: int
    rewind: Rewind


class Rewinds:
    """All rewinds of a run."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Finds them in the rows of a whole journal."""
        self._attempts: dict[str, int] = {}
        self._all: list[_At] = []
        for row in rows:
            if isinstance(row.record, Header):
                self._attempts[row.segment] = row.record.attempt
            elif isinstance(row.record, Rewind):
                attempt = self._attempts.get(row.segment, 1)
                self._all.append(_At(row.segment, row.line, attempt, row.record))

    def __bool__(self) -> bool:
        return bool(self._all)

    def supersedes(self, segment: str, line: int, row: Scalars | MediumRecord) -> bool:
        """Whether one of them goes back before this row."""
        attempt = self._attempts.get(segment, 1)
        return any(
            _is_after(at, segment, line, attempt, row)
            and (
                row.step > at.rewind.step
                or (segment == at.rewind.segment and line >= at.rewind.line)
                or 0 < at.rewind.attempt < attempt < at.attempt
            )
            for at in self._all
        )

    def supersedes_partial(self, segment: str, row: Scalars) -> bool:
        """Whether one of them goes back before what was open when the segment broke off."""
        return self.supersedes(segment, _BEHIND_ALL_LINES, row)


def _is_after(at: _At, segment: str, line: int, attempt: int, row: Scalars | MediumRecord) -> bool:
    """Whether the rewind came after the row; clocks are asked only within one attempt."""
    if segment == at.segment:
        return line < at.line
    if attempt != at.attempt:
        return attempt < at.attempt
    return row.time <= at.rewind.time


def without_superseded(rows: list[Row]) -> list[Row]:
    """The rows of a whole journal, but for those that are superseded."""
    rewinds = Rewinds(rows)
    if not rewinds:
        return rows
    return [
        row
        for row in rows
        if not isinstance(row.record, Scalars | MediumRecord)
        or not rewinds.supersedes(row.segment, row.line, row.record)
    ]

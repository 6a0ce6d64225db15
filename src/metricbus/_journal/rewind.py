"""Determines which rows the rewinds of a run supersede."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import Header, Rewind, ScalarRow, decode_or_none
from metricbus._journal.segment_reader import SUFFIX, JournalReader, Row

_AFTER_ALL_LINES = 1 << 62


class _LocatedRewind(NamedTuple):
    """A rewind, with the segment, line and attempt in which it was written."""

    segment: str
    line: int
    attempt: int
    rewind: Rewind

    def follows(self, segment: str, line: int, attempt: int, row: ScalarRow | MediumRecord) -> bool:
        """Check whether it was written after `row`; compares clocks only within one attempt."""
        if segment == self.segment:
            return line < self.line
        if attempt != self.attempt:
            return attempt < self.attempt
        return row.time <= self.rewind.time


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
        attempt = self._attempts.get(segment, 1)
        return any(
            located.follows(segment, line, attempt, row)
            and (
                row.step > located.rewind.step
                or (segment == located.rewind.segment and line >= located.rewind.line)
                or 0 < located.rewind.attempt < attempt < located.attempt
            )
            for located in self._rewinds
        )

    def supersedes_partial(self, segment: str, row: ScalarRow) -> bool:
        """Check whether any rewind supersedes a partial row of a segment whose writer died."""
        return self.supersedes(segment, _AFTER_ALL_LINES, row)


def find_rewinds(journal: Path) -> Rewinds:
    """Find the rewinds of a run, decoding only headers and the lines that mention a rewind."""
    rows = []
    for segment in JournalReader(journal).segments():
        with open(journal / (segment + SUFFIX), "rb") as file:
            for number, line in enumerate(file):
                if (number == 0 or b'"rewind"' in line) and line.endswith(b"\n"):
                    rows.append(Row(segment, number, 0, decode_or_none(line)))
    return Rewinds(rows)

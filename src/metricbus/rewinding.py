"""Which rows a later attempt has superseded."""

from __future__ import annotations

from collections.abc import Iterable

from metricbus.journal import Row
from metricbus.records import Header, Rewind, Scalars


def without_superseded(rows: Iterable[Row]) -> list[Row]:
    """The rows of a whole journal, but for those that a rewind goes back before."""
    rows = list(rows)
    rewinds = [(row, row.record) for row in rows if isinstance(row.record, Rewind)]
    if not rewinds:
        return rows
    attempts = {row.segment: row.record.attempt for row in rows if isinstance(row.record, Header)}
    return [
        row
        for row in rows
        if not isinstance(row.record, Scalars)
        or not any(
            _is_before(row, row.record, at, rewind)
            and (
                row.record.step > rewind.step
                or (row.segment == rewind.segment and row.line >= rewind.line)
                or attempts.get(row.segment, 1) > rewind.attempt > 0
            )
            for at, rewind in rewinds
        )
    ]


def _is_before(row: Row, record: Scalars, at: Row, rewind: Rewind) -> bool:
    if row.segment == at.segment:
        return row.line < at.line
    return record.time <= rewind.time

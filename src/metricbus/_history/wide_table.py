"""Scalars as a table with one line per step and epoch and one column per name."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from metricbus._common.records import Number, ScalarRow
from metricbus.sinks.csv.cells import safe_cell

if TYPE_CHECKING:
    from metricbus._history.columns import ColumnRow


class WideTable(NamedTuple):
    """A table with one line per step and epoch and one column per name; missing values are None.

    If a name was logged several times at a step and epoch, that step and epoch has several lines.
    """

    columns: list[str]
    rows: list[list[Number | None]]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as RFC 4180 CSV, with empty cells for missing values.

        A cell that a spreadsheet would run as a formula is escaped with an apostrophe.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([safe_cell(column) for column in self.columns])
            writer.writerows(self.rows)


def step_and_epoch(row: ScalarRow | ColumnRow) -> tuple[int, int]:
    """Return the sort key of the rows for `merge_rows`."""
    return row.step, row.epoch


def merge_rows(
    rows: Iterable[ScalarRow | ColumnRow],
) -> Iterator[tuple[tuple[int, int], dict[str, Number]]]:
    """Merge adjacent rows of the same step and epoch; a repeated name starts another line.

    Yields the step and epoch of each line, and its values by name.
    """
    key: tuple[int, int] | None = None
    line: dict[str, Number] = {}
    for row in rows:
        if key is not None and (
            key != step_and_epoch(row) or not line.keys().isdisjoint(row.values)
        ):
            yield key, line
            line = {}
        key = step_and_epoch(row)
        line.update(row.values)
    if key is not None:
        yield key, line

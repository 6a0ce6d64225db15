"""Reading a run back: `metricbus.read(folder)`."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metricbus.endings import left_open
from metricbus.journal import JournalReader
from metricbus.media import MediaFolder
from metricbus.media_records import Cell, MediumRecord, TableRecord
from metricbus.records import Number, Scalars, told_apart
from metricbus.rewinding import Rewinds, without_superseded
from metricbus.run import Run, RunFolder
from metricbus.sinks.csv import safe_cell

Ints: TypeAlias = NDArray[np.int64]

_EXACT = 2**53  # integers up to here are exact as float64


class Series(NamedTuple):
    """One name's values in the order of the journal, as columns of equal length.

    `time` is in nanoseconds since 1970-01-01 UTC. `value` is int64 if all values are integers and
    float64 otherwise; where that would change an integer, it holds Python's own numbers instead.
    """

    step: Ints
    epoch: Ints
    time: Ints
    value: NDArray[Any]

    def __len__(self) -> int:
        return len(self.step)


class TableRows(NamedTuple):
    """A table; `step` and `epoch` are those of its first part.

    `missing` rows are in no part that is in the journal: those of parts that were dropped, or that
    a rewind has superseded. (What is missing at the end cannot be known.)
    """

    step: int
    epoch: int
    columns: list[str]
    rows: list[list[Cell]]
    missing: int = 0


class Wide(NamedTuple):
    """A table with one line per step and epoch and one column per name; absent values are None.

    A name that came twice at a step and epoch takes a further line.
    """

    columns: list[str]
    rows: list[list[Number | None]]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as RFC 4180 CSV; absent values are empty cells."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([safe_cell(column) for column in self.columns])
            writer.writerows(self.rows)


class History:
    """What a run logged.

    `partial` has what was in open reductions when their process died (or still is, in a live run),
    as last written down. `damaged` is the number of journal lines that could not be read, and
    `torn` the number of bytes of unfinished lines at the ends of segments. `files` reads the files
    of media, and says so if one is missing or was changed.
    """

    def __init__(self, folder: RunFolder, *, superseded: bool = False) -> None:
        self.folder = folder.path
        self.run: Run = folder.load()
        reader = JournalReader(folder.journal)
        rows = list(reader.read())
        rewinds = Rewinds(() if superseded else rows)
        partial = left_open(rows)
        if not superseded:
            rows = without_superseded(rows)
        records = [told_apart(row.record) for row in rows]
        self._rows = [record for record in records if isinstance(record, Scalars)]
        self._media = [record for record in records if isinstance(record, MediumRecord)]
        self.files = MediaFolder(folder.path)
        self.partial = [
            told_apart(row)
            for segment, row in partial
            if not rewinds.supersede_partial(segment, row)
        ]
        self.damaged = reader.damaged
        self.torn = reader.unread_bytes()
        self._groups: dict[tuple[str, ...], list[int]] = {}
        for index, row in enumerate(self._rows):
            self._groups.setdefault(tuple(row.values), []).append(index)

    def __len__(self) -> int:
        """The number of rows of numbers."""
        return len(self._rows)

    def names(self) -> list[str]:
        """All names of numbers, in the order in which they first came."""
        return list(dict.fromkeys(name for group in self._groups for name in group))

    def series(self, name: str) -> Series:
        """One name's values; `KeyError` if it was never logged."""
        where = sorted(
            index for names, indices in self._groups.items() if name in names for index in indices
        )
        if not where:
            if self.media(name):
                raise KeyError(f"{name!r} has no numbers: see history.media({name!r})")
            raise KeyError(f"{name!r} was never logged; there are: {', '.join(self.names())}")
        rows = [self._rows[index] for index in where]
        return Series(
            step=np.array([row.step for row in rows], dtype=np.int64),
            epoch=np.array([row.epoch for row in rows], dtype=np.int64),
            time=np.array([row.time for row in rows], dtype=np.int64),
            value=_column([row.values[name] for row in rows]),
        )

    def media(self, name: str | None = None) -> list[MediumRecord]:
        """Histograms, images and the like, of one name or of all, in the order of the journal."""
        return [record for record in self._media if name in (None, record.name)]

    def tables(self, name: str) -> list[TableRows]:
        """The tables that were logged under a name, each with all its rows.

        Raises `MediaError` if a part of one is missing or was changed.
        """
        parts: dict[str, dict[int, TableRecord]] = {}
        for record in self.media(name):
            if isinstance(record, TableRecord):
                parts.setdefault(record.table, {})[record.first_row] = record
        return [self._joined([one for _, one in sorted(table.items())]) for table in parts.values()]

    def _joined(self, parts: Sequence[TableRecord]) -> TableRows:
        first, last = parts[0], parts[-1]
        rows = [row for part in parts for row in self.files.rows(part)]
        missing = last.first_row + last.rows - len(rows)
        return TableRows(first.step, first.epoch, first.columns, rows, missing)

    def wide(self) -> Wide:
        """The scalars as one table, ordered by step and epoch."""
        names = self.names()
        lines: dict[tuple[int, int], list[dict[str, Number]]] = {}
        for row in self._rows:
            merged = lines.setdefault((row.step, row.epoch), [{}])
            if not merged[-1].keys().isdisjoint(row.values):
                merged.append({})
            merged[-1].update(row.values)
        return Wide(
            columns=["step", "epoch", *names],
            rows=[
                [step, epoch, *(line.get(name) for name in names)]
                for (step, epoch), merged in sorted(lines.items())
                for line in merged
            ],
        )


def read(folder: str | os.PathLike[str], *, superseded: bool = False) -> History:
    """What the run in this folder logged, live or ended; `JournalError` if it is no run.

    What a rewind went back before is left out, unless `superseded` asks for it.
    """
    return History(RunFolder(Path(folder)), superseded=superseded)


def _column(values: Sequence[Number]) -> NDArray[Any]:
    kinds = set(map(type, values))
    if kinds == {int}:
        return np.array(values, dtype=np.int64)
    if int in kinds and any(type(value) is int and abs(value) > _EXACT for value in values):
        return np.array(values, dtype=object)
    return np.array(values, dtype=np.float64)

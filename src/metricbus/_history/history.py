"""Reading a run back: `metricbus.read(folder)`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from metricbus._common.media_records import Cell, MediumRecord, TableRecord
from metricbus._common.records import Header, Number, Rewind, Scalars, with_rank_prefix
from metricbus._history.columns import ScalarColumns, PlainRow, Series
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.recovery import partial_rows
from metricbus._journal.rewind import Rewinds
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import JournalReader, OnProgress, Row
from metricbus.errors import JournalError
from metricbus.sinks.csv.cells import safe_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["History", "Series", "TableRows", "Wide", "read"]

_ROWS_A_REPORT = 5_000


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


class WideTable(NamedTuple):
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


class _JournalPass:
    """One pass over a journal: what is not needed as an object goes into columns as it comes."""

    def __init__(self, reader: JournalReader, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._bytes = reader.unread_bytes()
        self.columns = ScalarColumns()
        self.media: list[tuple[Row, MediumRecord]] = []
        self.places: list[tuple[int, str]] = []  # at which place each segment begins
        self._marks: list[Row] = []  # what rewinds are known from
        self.partial = partial_rows(self._taken(reader.read()))
        self.columns.pack()

    def _taken(self, rows: Iterable[Row]) -> Iterator[Row]:
        segment, before, end = "", 0, 0
        for place, row in enumerate(rows):
            if row.segment != segment:
                segment = row.segment
                before += end
                self.places.append((place - row.line, segment))
            record, end = row.record, row.end
            if place % _ROWS_A_REPORT == 0:
                self._on_progress(before + end, self._bytes)
            if isinstance(record, Scalars):
                self.columns.add(place, record)
            elif isinstance(record, MediumRecord):
                self.media.append((row, record))
            elif isinstance(record, Header | Rewind):
                self._marks.append(row)
            yield row

    def leave_out_superseded(self) -> None:
        """Lets go of what a rewind goes back before."""
        rewinds = Rewinds(self._marks)
        if not rewinds:
            return
        starts = np.array([place for place, _ in self.places])

        def counts(row: PlainRow) -> bool:
            place, segment = self.places[int(np.searchsorted(starts, row.place, "right")) - 1]
            stands = Scalars(row.step, row.epoch, row.time, {})
            return not rewinds.supersede(segment, row.place - place, stands)

        self.columns.keep(counts)
        self.media = [
            (row, record)
            for row, record in self.media
            if not rewinds.supersede(row.segment, row.line, record)
        ]
        self.partial = [
            (segment, row)
            for segment, row in self.partial
            if not rewinds.supersede_partial(segment, row)
        ]


class History:
    """What a run logged.

    `partial` has what was in open reductions when their process died (or still is, in a live run),
    as last written down. `damaged` is the number of journal lines that could not be read, and
    `torn` the number of bytes of unfinished lines at the ends of segments. `files` reads the files
    of media, and says so if one is missing or was changed.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        superseded: bool = False,
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        self.folder = folder.path
        self.run: Run = folder.load()
        reader = JournalReader(folder.journal)
        try:
            read = _JournalPass(reader, on_progress)
        except OverflowError:
            raise JournalError(
                f"{folder.journal} has a step, an epoch or a time beyond 64 bits"
            ) from None
        if not superseded:
            read.leave_out_superseded()
        self._columns = read.columns
        self._media = [with_rank_prefix(record) for _, record in read.media]
        self.files = MediaFolder(folder.path)
        self.partial = [with_rank_prefix(row) for _, row in read.partial]
        self.damaged = reader.damaged
        self.torn = reader.unread_bytes()

    def __len__(self) -> int:
        """The number of rows of numbers."""
        return len(self._columns)

    def __repr__(self) -> str:
        return (
            f"<History of {self.run.id!r}, {self.run.status}: "
            f"{len(self):,} rows, {len(self.names()):,} names>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from metricbus._history.notebook_html import history_html

        return history_html(self)

    @property
    def span(self) -> tuple[int, int]:
        """When the first and the last row were logged, in nanoseconds since 1970-01-01 UTC.

        Of a run without numbers it is twice the time at which the run began.
        """
        return self._columns.span() or (self.run.started, self.run.started)

    def names(self) -> list[str]:
        """All names of numbers, in the order in which they first came."""
        return self._columns.names()

    def series(self, name: str) -> Series:
        """One name's values; `KeyError` if it was never logged."""
        series = self._columns.series(name)
        if series is None:
            if self.media(name):
                raise KeyError(f"{name!r} has no numbers: see history.media({name!r})")
            raise KeyError(f"{name!r} was never logged; there are: {', '.join(self.names())}")
        return series

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

    def wide(self) -> WideTable:
        """The scalars as one table, ordered by step and epoch."""
        names = self.names()
        lines: dict[tuple[int, int], list[dict[str, Number]]] = {}
        for row in self._columns.rows():
            merged = lines.setdefault((row.step, row.epoch), [{}])
            if not merged[-1].keys().isdisjoint(row.values):
                merged.append({})
            merged[-1].update(row.values)
        return WideTable(
            columns=["step", "epoch", *names],
            rows=[
                [step, epoch, *(line.get(name) for name in names)]
                for (step, epoch), merged in sorted(lines.items())
                for line in merged
            ],
        )

    def frame(self, kind: Literal["pandas", "polars"] | None = None, *, wide: bool = False) -> Any:
        """The numbers as a DataFrame of pandas or polars, of whichever is installed.

        One line a value, in the order of the journal, with the columns step, epoch, time (in UTC,
        to the nanosecond), name and value; or, with `wide=True`, what `wide()` has. Numbers come
        exactly: a column in which float64 would change an integer holds Python's own numbers.
        Raises `MissingPackageError` where neither is installed, or not the one that was asked for.
        """
        from metricbus._history.dataframes import long_frame, wide_frame

        return wide_frame(*self.wide(), kind) if wide else long_frame(self._columns, kind)

    def plot(
        self,
        *names: str,
        x: str = "step",
        smooth: float = 0.0,
        ax: Axes | None = None,
        log: bool = False,
    ) -> Axes:
        """Draws series into `ax`, or into a new figure, by matplotlib; returns the Axes.

        `names` are names or globs; without any, all series are drawn. `x` is `step`, `epoch`,
        `time` (since the run began) or the name of a series. `smooth` is the weight of the past in
        an exponential mean, from 0 to below 1; the values themselves stay behind it, faint.

        Raises `KeyError` for a name that was never logged, `ValueError` for another wrong argument,
        `MissingPackageError` without matplotlib.
        """
        from metricbus._history.plots.matplotlib_figure import draw_on_axes

        return draw_on_axes(self, names, x=x, smooth=smooth, ax=ax, log=log)


def read(folder: str | os.PathLike[str], *, superseded: bool = False) -> History:
    """What the run in this folder logged, live or ended; `JournalError` if it is no run.

    What a rewind went back before is left out, unless `superseded` asks for it.
    """
    return History(RunFolder(Path(folder)), superseded=superseded)

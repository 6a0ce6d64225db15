"""Reads a run back: `metricbus.read(folder)`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from metricbus._common.media_records import Cell, MediumRecord, TableRecord
from metricbus._common.records import End, PartialAggregates, ScalarRow, with_rank_prefix
from metricbus._history.columns import ScalarColumns, Series
from metricbus._history.name_filter import NameFilter, no_match_message
from metricbus._history.thin_blocks import ThinBlocks
from metricbus._history.wide_table import WideTable, merge_rows, step_and_epoch
from metricbus._journal.crash_recovery import PartialRows
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.rewind import Rewinds, find_rewinds
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.run_updates import complete_run
from metricbus._journal.segment_reader import JournalReader, OnProgress
from metricbus.errors import JournalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["History", "Series", "TableRows", "read"]

_SCALAR_KINDS = (ScalarRow, PartialAggregates, End)


class TableRows(NamedTuple):
    """A logged table, assembled from its parts; `step` and `epoch` are those of its first part.

    `missing` counts the rows of parts that are not in the journal because they were dropped or
    superseded by a rewind. Rows missing after the last part are not counted.
    """

    step: int
    epoch: int
    columns: list[str]
    rows: list[list[Cell]]
    missing: int = 0


class History:
    """The data that a run logged, read into memory.

    `run` has the identity, config, tags, summary and status of the run, and `folder` is its folder.
    `files` reads the files of media; it raises `MediaError` if one is missing or was changed.
    `partial` has the interim results of reductions that a dead process or a live run has not
    finished. `damaged` is the number of journal lines that could not be decoded, and `torn` the
    number of bytes in incomplete lines at the ends of segments.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        superseded: bool = False,
        scalars: NameFilter | None = None,
        thinned: bool = False,
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        """Read the run; with `scalars`, only the matching series, and no media.

        If the series are also `thinned`, they look the same when they are drawn over their steps,
        but some values, and the epochs and times of all others, are missing.
        """
        self.folder = folder.path
        self.run: Run = complete_run(folder)
        self.files = MediaFolder(folder.path)
        self._columns = ScalarColumns()
        self._media: list[MediumRecord] = []
        reader = JournalReader(folder.journal)
        rewinds = Rewinds(()) if superseded else find_rewinds(folder.journal)
        partial = PartialRows()
        kinds = () if scalars is None else _SCALAR_KINDS
        selected = scalars or NameFilter()
        thin = ThinBlocks(reader, rewinds, selected.matches) if thinned else None
        try:
            for number, row in enumerate(reader.rows(kinds, selected.matches, on_progress, thin)):
                partial.update(row)
                record = row.record
                if not isinstance(record, ScalarRow | MediumRecord):
                    continue
                if rewinds and rewinds.supersedes(row.segment, row.line, record):
                    continue
                if isinstance(record, MediumRecord):
                    self._media.append(with_rank_prefix(record))
                elif (matching := selected.filter_record(record)) is not None:
                    self._columns.add(number, matching)
            self._columns.pack()
        except OverflowError:
            raise JournalError(
                f"{folder.journal} has a step, an epoch or a time that does not fit into 64 bits"
            ) from None
        self.partial = [
            with_rank_prefix(matching)
            for segment, row in partial.rows()
            if not rewinds.supersedes_partial(segment, row)
            and (matching := selected.filter_record(row)) is not None
        ]
        self.damaged = reader.damaged
        self.torn = reader.torn_bytes()

    def __len__(self) -> int:
        """Return the number of scalar rows."""
        return len(self._columns)

    def __repr__(self) -> str:
        return (
            f"<History of {self.run.id!r}, {self.run.status}: "
            f"{len(self):,} rows, {len(self.names()):,} names>"
        )

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook displays."""
        from metricbus._history.notebook_html import history_html

        return history_html(self)

    @property
    def span(self) -> tuple[int, int]:
        """The times of the earliest and the latest row, in nanoseconds since 1970-01-01 UTC.

        Both are the start time of the run if it has no scalars.
        """
        return self._columns.span() or (self.run.started, self.run.started)

    def names(self) -> list[str]:
        """Return the names of all scalar series in the order of their first values."""
        return self._columns.names()

    def series(self, name: str) -> Series:
        """Return the values of one name. Raises `KeyError` if the name has no scalars."""
        series = self._columns.series(name)
        if series is None:
            if self.media(name):
                raise KeyError(f"{name!r} has media but no scalars. Use history.media({name!r}).")
            raise KeyError(no_match_message([name], self.names()))
        return series

    def media(self, name: str | None = None) -> list[MediumRecord]:
        """Return the records of media (histograms, images, ...) in journal order.

        Without `name`, the records of all names are returned.
        """
        return [record for record in self._media if name in (None, record.name)]

    def tables(self, name: str) -> list[TableRows]:
        """Return the tables logged under `name`, each assembled from all its parts.

        Raises `MediaError` if the file of a part is missing or was changed.
        """
        tables: dict[str, dict[int, TableRecord]] = {}
        for record in self.media(name):
            if isinstance(record, TableRecord):
                tables.setdefault(record.table, {})[record.first_row] = record
        result = []
        for by_first_row in tables.values():
            parts = [part for _, part in sorted(by_first_row.items())]
            first, last = parts[0], parts[-1]
            rows = [row for part in parts for row in self.files.rows(part)]
            missing = last.first_row + last.rows - len(rows)
            result.append(TableRows(first.step, first.epoch, first.columns, rows, missing))
        return result

    def wide(self) -> WideTable:
        """Return the scalars as a table: one row per step and epoch, one column per name."""
        names = self.names()
        sorted_rows = sorted(self._columns.rows(), key=step_and_epoch)
        rows = [[*key, *map(line.get, names)] for key, line in merge_rows(sorted_rows)]
        return WideTable(["step", "epoch", *names], rows)

    def frame(self, kind: Literal["pandas", "polars"] | None = None, *, wide: bool = False) -> Any:
        """Return the scalars as a DataFrame; `kind=None` tries pandas, then polars.

        The frame has one row per value, in journal order, with the columns step, epoch, time (UTC,
        to the nanosecond), name and value; with `wide=True`, the rows and columns of `wide()`.
        Numbers are exact: if float64 cannot represent an integer in a column, the column holds
        Python objects.

        Raises `MissingPackageError` if the library is missing, or with `kind=None`, if both are.
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
        """Draw series with matplotlib into `ax`, or into a new figure, and return the Axes.

        `names` are names or globs; without any, all series are drawn. `x` is `step`, `epoch`,
        `time` (since the start of the run) or the name of a series. `smooth` is the weight of past
        values in an exponential moving average, at least 0 and below 1; the unsmoothed values are
        drawn faintly behind it. `log` makes the y axis logarithmic.

        Raises `KeyError` if a name was never logged, `ValueError` if another argument is invalid,
        and `MissingPackageError` without matplotlib.
        """
        from metricbus._history.plots.matplotlib_figure import draw_on_axes

        return draw_on_axes(self, names, x=x, smooth=smooth, ax=ax, log=log)


def read(folder: str | os.PathLike[str], *, superseded: bool = False) -> History:
    """Read the run in `folder`, which may be live or finished.

    Values that a rewind has superseded are left out unless `superseded` is true.
    Raises `JournalError` if the folder is not a run folder or cannot be read.
    """
    return History(RunFolder(Path(folder)), superseded=superseded)

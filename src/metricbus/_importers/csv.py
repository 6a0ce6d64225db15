"""Imports CSV files, in the long form or in the wide form.

A file is in the long form if it has the columns `name` and `value`: one line per value, as written
by `metricbus export` and by the sink `csv`. Any other file is in the wide form: one line per step
and one column per series, like Lightning's `metrics.csv`. Cells that are not numbers are skipped
and reported with their line.
"""

from __future__ import annotations

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from metricbus._common.records import Number, Rewind, ScalarRow
from metricbus._common.validation import check_name, suggestion
from metricbus._importers.cells import parse_number, parse_step, parse_time
from metricbus._importers.run_writer import ImportResult, ImportTarget, RunWriter
from metricbus._journal.segment_reader import OnProgress
from metricbus.errors import ConfigError
from metricbus.sinks.csv.cells import safe_cell

_DELIMITERS = ",;\t"
_LONG_COLUMNS = ("name", "value")
_LINES_PER_REPORT = 5_000


class CsvLine(NamedTuple):
    """One line of the file; the first line has number 1."""

    number: int
    cells: Sequence[str]


class CsvLayout(NamedTuple):
    """The column names, and the indices of the columns with a fixed meaning; -1 if missing."""

    names: list[str]
    step: int
    epoch: int
    time: int
    kind: int
    is_long: bool


def import_csv(
    path: Path,
    target: ImportTarget,
    *,
    step: str = "step",
    time: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> ImportResult:
    """Create a run from a CSV file, which is read line by line.

    `step` names the column of steps. `time` names the column of times, which are seconds since
    1970-01-01 UTC or in ISO 8601. By default it is `time` in the long form; in the wide form, where
    `time` may be a series, there is no default. Rows without a time get the modification time of
    the file.

    Raises `ConfigError` if the file is not such a CSV file, and `OSError` if it cannot be read.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; expected a CSV file")
    if not path.exists():
        raise ConfigError(f"{path} does not exist; expected a CSV file")
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = _lines(file, path, step)
        layout = _layout(next(lines, CsvLine(1, [])), path, step, time)
        with RunWriter(target, path) as run:
            stat = path.stat()
            importer_type = _LongImporter if layout.is_long else _WideImporter
            importer = importer_type(layout, run, stat.st_mtime_ns)
            for line in lines:
                importer.add(line)
                if line.number % _LINES_PER_REPORT == 0:
                    on_progress(os.lseek(file.fileno(), 0, os.SEEK_CUR), stat.st_size)
            importer.flush()
            return run.finish()


def _lines(file: TextIO, path: Path, step: str) -> Iterator[CsvLine]:
    """Yield the lines that are not empty. Raises `ConfigError` if the file is not CSV in UTF-8."""
    number = 0
    try:
        reader = csv.reader(file, delimiter=_delimiter(file, step))
        for cells in reader:
            number = reader.line_num
            if any(cells):
                yield CsvLine(number, cells)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise ConfigError(f"{path} is not valid CSV after line {number:,}: {error}") from error


def _delimiter(file: TextIO, step: str) -> str:
    """Return the delimiter that yields a column of steps; if several do, that with most columns.

    Names of columns may contain the other delimiters.
    """

    def rank(delimiter: str) -> tuple[bool, int]:
        names = next(csv.reader(file, delimiter=delimiter), [])
        file.seek(0)
        return step in map(str.strip, names), len(names)

    return max(_DELIMITERS, key=rank)


def _layout(first: CsvLine, path: Path, step: str, time: str | None) -> CsvLayout:
    names = [name.strip() for name in first.cells]
    if not names:
        raise ConfigError(f"{path} is empty; expected a line of column names")
    duplicates = sorted({name for name in names if name and names.count(name) > 1})
    if duplicates:
        raise ConfigError(f"{path} has two columns named {duplicates[0]!r}; rename one of them")
    is_long = all(name in names for name in _LONG_COLUMNS)
    required = {step: "--step"} | ({time: "--time"} if time else {})
    for name, option in required.items():
        if name not in names:
            raise ConfigError(
                f"{path} has no column {name!r}{suggestion(name, names)} Name another column with "
                f"{option}. Available: {', '.join(names)}"
            )

    def index(name: str) -> int:
        return names.index(name) if name in names else -1

    return CsvLayout(
        names,
        step=index(step),
        epoch=index("epoch"),
        time=index(time or ("time" if is_long else "")),
        kind=index("kind") if is_long else -1,
        is_long=is_long,
    )


class _Importer(ABC):
    """Adds lines to a run. Base class of the importers of both forms."""

    def __init__(self, layout: CsvLayout, run: RunWriter, default_time: int) -> None:
        self._layout = layout
        self._run = run
        self._default_time = default_time
        self._names_by_cell: dict[str, str | None] = {}

    def add(self, line: CsvLine) -> None:
        if len(line.cells) > len(self._layout.names):
            self._skip("cells beyond the last column", line)
        cell = self._cell(line, self._layout.step)
        try:
            step = parse_step(cell)
        except ValueError:
            self._skip("lines whose step is not a non-negative integer", line, cell)
        else:
            self._add(line, step, self._epoch(line), self._time(line))

    @abstractmethod
    def _add(self, line: CsvLine, step: int, epoch: int, time: int) -> None:
        """Add the values of a line."""

    def flush(self) -> None:
        """Add the values that are still buffered."""

    def _skip(self, reason: str, line: CsvLine, cell: str | None = None) -> None:
        location = f"in line {line.number:,}"
        self._run.skipped.add(reason, location if cell is None else f"{cell!r:.40} {location}")

    def _epoch(self, line: CsvLine) -> int:
        cell = self._cell(line, self._layout.epoch)
        try:
            return parse_step(cell) if cell else 0
        except ValueError:
            self._skip("epochs that are not non-negative integers, replaced by 0", line, cell)
            return 0

    def _time(self, line: CsvLine) -> int:
        cell = self._cell(line, self._layout.time)
        try:
            return parse_time(cell) if cell else self._default_time
        except ValueError:
            self._skip("invalid times, replaced by the time of the file", line, cell)
            return self._default_time

    def _cell(self, line: CsvLine, column: int) -> str:
        return line.cells[column].strip() if 0 <= column < len(line.cells) else ""

    def _name(self, cell: str, line: CsvLine) -> str | None:
        """Return the series name in a cell; None if it is not a valid metric name."""
        if cell not in self._names_by_cell:
            try:
                self._names_by_cell[cell] = check_name(unescape_name(cell))
            except ValueError:
                self._names_by_cell[cell] = None
        name = self._names_by_cell[cell]
        if name is None:
            self._skip("values with invalid metric names", line, cell)
        return name

    def _number(self, cell: str, reason: str, line: CsvLine) -> Number | None:
        try:
            return parse_number(cell)
        except ValueError:
            self._skip(reason, line, cell)
            return None


class _WideImporter(_Importer):
    """Adds one row per line, with all cells that are numbers."""

    def __init__(self, layout: CsvLayout, run: RunWriter, default_time: int) -> None:
        super().__init__(layout, run, default_time)
        header = CsvLine(1, layout.names)
        self._series = [
            (column, name)
            for column, cell in enumerate(layout.names)
            if column not in (layout.step, layout.epoch, layout.time)
            and (name := self._name(cell, header)) is not None
        ]

    def _add(self, line: CsvLine, step: int, epoch: int, time: int) -> None:
        row: dict[str, Number] = {}
        for column, name in self._series:
            cell = self._cell(line, column)
            if not cell:
                self._skip("empty cells", line)
                continue
            number = self._number(cell, f"cells of column {name!r:.60} that are not numbers", line)
            if number is not None:
                row[name] = number
        if row:
            self._run.add_row(ScalarRow(step=step, epoch=epoch, time=time, values=row))


class _LongImporter(_Importer):
    """Adds one row for consecutive lines with the same step, epoch and time."""

    def __init__(self, layout: CsvLayout, run: RunWriter, default_time: int) -> None:
        super().__init__(layout, run, default_time)
        self._name_column, self._value_column = map(layout.names.index, _LONG_COLUMNS)
        self._row: ScalarRow | None = None
        header = CsvLine(1, layout.names)
        columns = (layout.step, layout.epoch, layout.time)
        known = {
            *_LONG_COLUMNS,
            "kind",
            *(layout.names[column] for column in columns if column >= 0),
        }
        for name in layout.names:
            if name not in known:
                self._skip(f"unknown columns ({name!r:.60})", header)

    def _add(self, line: CsvLine, step: int, epoch: int, time: int) -> None:
        kind = self._cell(line, self._layout.kind) or "scalar"
        if kind == "rewind":
            self.flush()
            self._run.add_rewind(Rewind(step=step, epoch=epoch, time=time))
            return
        if kind not in ("scalar", "partial"):
            self._skip(f"lines of kind {kind!r:.40}", line)
            return
        value = self._cell(line, self._value_column)
        if not value:
            self._skip("lines without a value", line)
            return
        name = self._name(line.cells[self._name_column], line)
        number = self._number(value, "values that are not numbers", line)
        if name is not None and number is not None:
            is_partial = kind == "partial"
            row = ScalarRow(step=step, epoch=epoch, time=time, values={}, partial=is_partial)
            self._add_value(row, name, number)

    def _add_value(self, new_row: ScalarRow, name: str, number: Number) -> None:
        """Add a value to the buffered row, or to `new_row` if it does not belong to the former."""
        row = self._row
        if row is None or name in row.values or _row_key(row) != _row_key(new_row):
            self.flush()
            row = self._row = new_row
        row.values[name] = number

    def flush(self) -> None:
        if self._row is not None:
            self._run.add_row(self._row)
            self._row = None


def unescape_name(cell: str) -> str:
    """Return the name in a cell, without the apostrophe that protects it from spreadsheets."""
    return cell[1:] if cell[:1] == "'" and safe_cell(cell[1:]) == cell else cell


def _row_key(row: ScalarRow) -> tuple[int, int, int, bool]:
    return row.step, row.epoch, row.time, row.partial

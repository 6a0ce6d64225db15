"""CSV files become runs: one line a value, or one line a step.

The header tells which of them it is. With the columns `name` and `value` it is the long form, that
of `metricbus export` and of the sink `csv`; otherwise the wide one, with a column for each series,
as of Lightning's `metrics.csv`. What is no number is left out and told with its line.
"""

from __future__ import annotations

import csv
import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from metricbus._common.records import Number, Rewind, Scalars
from metricbus._common.validation import check_name
from metricbus._importers.cells import parse_number, parse_step, parse_time
from metricbus._importers.run_writer import ImportTarget, ImportResult, SkipCounts, RunWriter, new_run
from metricbus._journal.segment_reader import OnProgress
from metricbus.errors import ConfigError
from metricbus.sinks.csv.cells import safe_cell

_DELIMITERS = ",;\t"
_LONG = ("name", "value")
_LINES_A_REPORT = 5_000


class Line(NamedTuple):
    """A line of the file: its number from 1, and its cells."""

    number: int
    cells: Sequence[str]


class Header(NamedTuple):
    """Which cell of a line is what; -1 for a column that is not there."""

    names: list[str]
    step: int
    epoch: int
    time: int
    kind: int
    is_long: bool


def import_csv(
    path: Path,
    to: ImportTarget,
    *,
    step: str = "step",
    time: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> ImportResult:
    """Makes a run of a CSV file, line by line.

    `step` names the column of the steps. Times, in seconds since 1970-01-01 UTC or as ISO 8601,
    are in the column `time`; in the wide form, where that may be a series, only if it is named
    here. Without them, all rows have the time at which the file was changed last.

    Raises `ConfigError` for a file that is no such CSV, and `OSError` where it cannot be read.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give one CSV file")
    if not path.exists():
        raise ConfigError(f"there is no {path}; give a CSV file")
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = _lines(file, path, step)
        header = _header(next(lines, Line(1, [])), path, step, time)
        with new_run(to, path) as run:
            about = path.stat()
            changed = about.st_mtime_ns
            reader = (_Long if header.is_long else _Wide)(header, run, changed)
            for line in lines:
                reader.take(line)
                if line.number % _LINES_A_REPORT == 0:
                    on_progress(os.lseek(file.fileno(), 0, os.SEEK_CUR), about.st_size)
            reader.finish()
            return run.end()


def _lines(file: TextIO, path: Path, step: str) -> Iterator[Line]:
    """The lines that have anything in them; `ConfigError` for what is no text or no CSV."""
    number = 0
    try:
        reader = csv.reader(file, delimiter=_delimiter(file, step))
        for cells in reader:
            number = reader.line_num
            if any(cells):
                yield Line(number, cells)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
    except csv.Error as error:
        raise ConfigError(f"{path} is no CSV after line {number:,}: {error}") from error


def _delimiter(file: TextIO, step: str) -> str:
    """The one that gives a column of steps, in a file at its start; of several, the most columns.

    Names may have the others in them.
    """

    def found(delimiter: str) -> tuple[bool, int]:
        names = next(csv.reader(file, delimiter=delimiter), [])
        file.seek(0)
        return step in map(str.strip, names), len(names)

    return max(_DELIMITERS, key=found)


def _header(first: Line, path: Path, step: str, time: str | None) -> Header:
    names = [name.strip() for name in first.cells]
    if not names:
        raise ConfigError(f"{path} is empty; its first line names its columns")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path} has the column {twice[0]!r} twice; rename one of them")
    is_long = all(name in names for name in _LONG)
    wanted = {step: "--step"} | ({time: "--time"} if time else {})
    for name, option in wanted.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"{path} has no column {name!r}{hint}; name another by {option}. "
                f"It has: {', '.join(names)}"
            )

    def where(name: str) -> int:
        return names.index(name) if name in names else -1

    return Header(
        names,
        step=where(step),
        epoch=where("epoch"),
        time=where(time or ("time" if is_long else "")),
        kind=where("kind") if is_long else -1,
        is_long=is_long,
    )


class _Reader(ABC):
    """Brings lines into a run. What stands where is the same in both forms."""

    def __init__(self, header: Header, run: RunWriter, changed: int) -> None:
        self._header = header
        self._run = run
        self._changed = changed
        self._known: dict[str, str | None] = {}

    @property
    def _left_out(self) -> SkipCounts:
        return self._run.left_out

    def take(self, line: Line) -> None:
        """Brings one line into the run."""
        if len(line.cells) > len(self._header.names):
            self._left_out.add("cells beyond the last column", f"in line {line.number:,}")
        place = self._place(line)
        if place is not None:
            self._take(line, *place)

    @abstractmethod
    def _take(self, line: Line, step: int, epoch: int, time: int) -> None:
        """The values of a line that stands at this place."""

    def finish(self) -> None:
        """There are no more lines."""

    def _place(self, line: Line) -> tuple[int, int, int] | None:
        """Step, epoch and time; None, and a word of it, for a line that cannot be placed."""
        step = self._cell(line, self._header.step)
        try:
            found = parse_step(step)
        except ValueError:
            where = f"{step!r:.40} in line {line.number:,}"
            self._left_out.add("lines whose step is no whole number from 0 on", where)
            return None
        return found, self._epoch(line), self._time(line)

    def _epoch(self, line: Line) -> int:
        cell = self._cell(line, self._header.epoch)
        try:
            return parse_step(cell) if cell else 0
        except ValueError:
            where = f"{cell!r:.40} in line {line.number:,}"
            self._left_out.add("epochs that are no whole number from 0 on, taken for 0", where)
            return 0

    def _time(self, line: Line) -> int:
        cell = self._cell(line, self._header.time)
        try:
            return parse_time(cell) if cell else self._changed
        except ValueError:
            where = f"{cell!r:.40} in line {line.number:,}"
            self._left_out.add("times that are none, taken for that of the file", where)
            return self._changed

    def _cell(self, line: Line, column: int) -> str:
        return line.cells[column].strip() if 0 <= column < len(line.cells) else ""

    def _name(self, cell: str, line: Line) -> str | None:
        """The name of a series in a cell; None if no metric may be called so."""
        if cell not in self._known:
            try:
                self._known[cell] = check_name(unescape_name(cell))
            except ValueError:
                self._known[cell] = None
        name = self._known[cell]
        if name is None:
            self._left_out.add(
                "values whose names no metric may have", f"{cell!r:.40} in line {line.number:,}"
            )
        return name

    def _number(self, cell: str, what: str, line: Line) -> Number | None:
        try:
            return parse_number(cell)
        except ValueError:
            self._left_out.add(what, f"{cell!r:.40} in line {line.number:,}")
            return None


class _Wide(_Reader):
    """One line a step: a row of all its cells that have a number."""

    def __init__(self, header: Header, run: RunWriter, changed: int) -> None:
        super().__init__(header, run, changed)
        places = (header.step, header.epoch, header.time)
        unnamed = Line(1, header.names)
        self._series = [
            (column, name)
            for column, cell in enumerate(header.names)
            if column not in places and (name := self._name(cell, unnamed)) is not None
        ]

    def _take(self, line: Line, step: int, epoch: int, time: int) -> None:
        row: dict[str, Number] = {}
        for column, name in self._series:
            cell = self._cell(line, column)
            if not cell:
                self._left_out.add("empty cells", f"in line {line.number:,}")
                continue
            number = self._number(cell, f"cells of {name!r:.60} that are no number", line)
            if number is not None:
                row[name] = number
        if row:
            self._run.row(Scalars(step=step, epoch=epoch, time=time, values=row))


class _Long(_Reader):
    """One line a value: those of one place that follow each other become a row."""

    def __init__(self, header: Header, run: RunWriter, changed: int) -> None:
        super().__init__(header, run, changed)
        self._name_column, self._value_column = map(header.names.index, _LONG)
        self._row: Scalars | None = None
        known = {*_LONG, "kind", *_named(header)}
        for name in header.names:
            if name not in known:
                self._left_out.add(f"columns that are not known ({name!r:.60})", "in line 1")

    def _take(self, line: Line, step: int, epoch: int, time: int) -> None:
        kind = self._cell(line, self._header.kind) or "scalar"
        if kind == "rewind":
            self.finish()
            self._run.rewind(Rewind(step=step, epoch=epoch, time=time))
            return
        if kind not in ("scalar", "partial"):
            self._left_out.add(f"lines of the kind {kind!r:.40}", f"in line {line.number:,}")
            return
        value = line.cells[self._value_column] if self._value_column < len(line.cells) else ""
        if not value.strip():
            self._left_out.add("lines without a value", f"in line {line.number:,}")
            return
        name = self._name(line.cells[self._name_column], line)
        number = self._number(value.strip(), "values that are no number", line)
        if name is not None and number is not None:
            place = Scalars(step=step, epoch=epoch, time=time, values={}, partial=kind == "partial")
            self._join(place, name, number)

    def _join(self, place: Scalars, name: str, number: Number) -> None:
        row = self._row
        if row is None or name in row.values or _place_of(row) != _place_of(place):
            self.finish()
            row = self._row = place
        row.values[name] = number

    def finish(self) -> None:
        """The row that was gathered is whole."""
        if self._row is not None:
            self._run.row(self._row)
            self._row = None


def unescape_name(cell: str) -> str:
    """The name in a cell, without the apostrophe by which it was made safe for spreadsheets."""
    return cell[1:] if cell[:1] == "'" and safe_cell(cell[1:]) == cell else cell


def _place_of(row: Scalars) -> tuple[int, int, int, bool]:
    return row.step, row.epoch, row.time, row.partial


def _named(header: Header) -> Iterable[str]:
    """The columns that say where a line stands."""
    return (header.names[i] for i in (header.step, header.epoch, header.time) if i >= 0)

"""`Table`: rows of numbers, text and pictures; it may grow."""

from __future__ import annotations

import datetime
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue, about, check_text
from metricbus._common.media_records import Cell, TableRecord, encode_rows
from metricbus._common.validation import to_number
from metricbus.errors import MetricBusError
from metricbus.media.arrays import is_tensor, view_of
from metricbus.media.image import Image

_ACCEPTED = "numbers, text, booleans, None, dates and metricbus's Image(…)"
_CELL_BYTES = 64


_claims = threading.RLock()  # of rows, by threads that log one table; a signal handler may, too


def _renew_claims() -> None:
    global _claims
    _claims = threading.RLock()


os.register_at_fork(after_in_child=_renew_claims)  # a thread that is not there may hold it


class _Logged(NamedTuple):
    """How much of a table was logged: its id, and how many parts and rows."""

    table: str
    parts: int
    rows: int


class Table(MediaValue):
    """Rows with named columns: `Table(columns=["id", "guess"], rows=[[7, 1], [9, 4]])`.

    Instead of columns and rows it takes a dict of columns, a list of dicts, a pandas or polars
    frame, or an array with two axes or with named fields. Cells are numbers, text, booleans,
    None, dates (as ISO 8601 text) and `Image`s.

    A table grows by `append`; logging the same object again writes what is new alone, so that it
    costs the same however long the table is. Another object under the same name is another table.
    """

    def __init__(self, columns: Any = (), rows: Any = None) -> None:
        self._columns, self._rows = _columns_and_rows(columns, rows)
        self._logged: dict[tuple[str, int, str], _Logged] = {}  # by run, process and name

    @property
    def columns(self) -> list[Any]:
        """The columns' names."""
        return list(self._columns)

    @property
    def rows(self) -> list[Sequence[Any]]:
        """All rows so far."""
        return list(self._rows)

    def append(self, *rows: Sequence[Any]) -> None:
        """Adds rows; they are written when the table is logged the next time.

        Raises `TypeError` or `ValueError` for a row that does not fit, and adds none of them then.
        """
        for number, row in enumerate(rows, len(self._rows)):
            _check_length("", row, number, self._columns)
            for column, cell in zip(self._columns, row, strict=True):
                if not isinstance(cell, Image):
                    _check_cell("", number, column, cell)
        self._rows.extend(rows)

    def _capture(self, name: str) -> EncodeJob | None:
        """Checks and copies the rows that are new under this name."""
        return self._capture_for_run("", name)

    def _capture_for_run(self, run: str, name: str) -> EncodeJob | None:
        """Checks and copies the rows that are new in this run under this name."""
        columns = check_columns(name, self._columns)
        key = run, os.getpid(), name  # a forked child's table goes its own way
        with _claims:
            before = self._logged.get(key) or _Logged(os.urandom(6).hex(), 0, 0)
            table, part, first = before
            rows = self._rows[first:]
            if part and not rows:
                return None
            nbytes, cells = take_rows(name, columns, rows, first)
            claimed = self._logged[key] = _Logged(table, part + 1, first + len(rows))
        encode = partial(_encode, table=table, part=part, first=first, columns=columns, rows=cells)
        return EncodeJob(nbytes, encode, undo=partial(self._give_back, key, claimed, before))

    def _give_back(self, key: tuple[str, int, str], claimed: _Logged, before: _Logged) -> None:
        with _claims:
            if self._logged.get(key) == claimed:  # else others have gone on from there
                self._logged[key] = before


def check_columns(name: str, columns: Sequence[Any]) -> list[str]:
    """The columns as text, each once; `TypeError` or `ValueError` if they are not."""
    if not columns:
        raise ValueError(f"metric {name!r}: a table has at least one column, this has none")
    checked = [check_text(name, f"the column's name {one!r:.80}", one) for one in columns]
    for column, times in Counter(checked).items():
        if times > 1:
            raise ValueError(f"metric {name!r}: the table has the column {column!r} twice")
    return checked


def take_rows(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], first: int = 0
) -> tuple[int, list[list[Any]]]:
    """About how many bytes the rows have, and the rows; of a picture, what will make its cell."""
    nbytes = 0
    taken: list[list[Any]] = []
    for number, row in enumerate(rows, first):
        _check_length(name, row, number, columns)
        cells = []
        for column, cell in zip(columns, row, strict=True):
            if isinstance(cell, Image):
                size, made = cell._take_cell(name)
                nbytes += size
                cells.append(made)
            else:
                cells.append(_check_cell(name, number, column, cell))
        nbytes += _CELL_BYTES * len(cells)
        taken.append(cells)
    return nbytes, taken


def finish_rows(rows: Sequence[Sequence[Any]], work: EncodeContext) -> list[list[Cell]]:
    """The rows with their pictures encoded."""
    return [[cell(work) if callable(cell) else cell for cell in row] for row in rows]


def _encode(
    work: EncodeContext,
    *,
    table: str,
    part: int,
    first: int,
    columns: list[str],
    rows: list[list[Any]],
) -> TableRecord:
    file = work.save("tables", ".jsonl", encode_rows(finish_rows(rows, work)))
    return work.record(
        TableRecord,
        table=table,
        part=part,
        first_row=first,
        rows=len(rows),
        columns=columns,
        file=file,
    )


def _columns_and_rows(columns: Any, rows: Any) -> tuple[list[Any], list[Sequence[Any]]]:
    if rows is not None and isinstance(columns, tuple) and not columns and _is_whole(rows):
        return _columns_and_rows(rows, None)
    if rows is not None:
        if isinstance(columns, str):
            raise TypeError(f"columns= takes a list of names, not a text: write [{columns!r}]")
        return _list_of("columns=", columns), _list_of("rows=", rows)
    if isinstance(columns, Mapping):
        return list(columns), _rows_of_columns(columns)
    if is_tensor(columns):
        columns = view_of("", columns, "an array")
    if _is_of_dicts(columns):
        return _columns_of_dicts(columns)
    if isinstance(columns, np.ndarray):
        if columns.dtype.names and columns.ndim == 1:
            fields = [_list_of(field, columns[field]) for field in columns.dtype.names]
            return list(columns.dtype.names), list(zip(*fields, strict=True))
        if columns.ndim != 2:
            raise ValueError(
                f"a table is made of an array with two axes, or with named fields, not of shape "
                f"{columns.shape}"
            )
        return [str(number) for number in range(columns.shape[1])], _list_of("", columns)
    if hasattr(columns, "itertuples"):  # pandas
        return list(columns.columns), list(columns.itertuples(index=False, name=None))
    if hasattr(columns, "iter_rows"):  # polars
        return list(columns.columns), list(columns.iter_rows())
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise TypeError(
            f"Table() was given {type(columns).__name__}; it takes columns and rows, a dict of "
            "columns, a pandas or polars frame, or a numpy array"
        )
    return list(columns), []


def _is_whole(given: Any) -> bool:
    """Whether it brings the names of its columns along."""
    return hasattr(given, "itertuples") or hasattr(given, "iter_rows") or _is_of_dicts(given)


def _is_of_dicts(given: Any) -> bool:
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], Mapping)


def _columns_of_dicts(given: Sequence[Any]) -> tuple[list[Any], list[Sequence[Any]]]:
    """Rows that are dicts, all of the same keys."""
    columns = list(given[0])
    for number, row in enumerate(given):
        if not isinstance(row, Mapping) or row.keys() != given[0].keys():
            raise ValueError(
                f"row {number} is {row!r:.80}; the first one is a dict of {', '.join(columns)}"
            )
    return columns, [[row[column] for column in columns] for row in given]


def _rows_of_columns(columns: Mapping[Any, Any]) -> list[Sequence[Any]]:
    lists = [_list_of(f"the column {key!r}", column) for key, column in columns.items()]
    lengths = {key: len(one) for key, one in zip(columns, lists, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a table are of one length, these are of {lengths}")
    return list(zip(*lists, strict=True))


def _list_of(what: str, given: Any) -> list[Any]:
    """Plain cells, or rows, where numpy and others have them; dates stay as exact as they are."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "mM":
        return [list(one) if one.ndim else one for one in given]
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{what} takes a list, not {type(given).__name__}: {given!r:.80}")
    return list(given)


def _check_length(name: str, row: Any, number: int, columns: Sequence[Any]) -> None:
    where = about(name)
    no_list = isinstance(row, str | bytes | Mapping | Set) or not hasattr(row, "__len__")
    if no_list or getattr(row, "shape", None) == ():
        raise TypeError(f"{where}row {number} is {type(row).__name__}; a row is a list of cells")
    if len(row) != len(columns):
        raise ValueError(
            f"{where}row {number} has {len(row)} cells, the table has {len(columns)} columns: "
            f"{', '.join(map(str, columns))}"
        )


def _check_cell(name: str, number: int, column: str, cell: Any) -> Cell:
    where = f"row {number}, column {column!r}"
    if cell is None or isinstance(cell, bool | np.bool_):
        return None if cell is None else bool(cell)
    if isinstance(cell, str):
        return check_text(name, where, cell)
    if isinstance(cell, datetime.date | datetime.time):  # and datetime, and pandas' own
        return None if str(cell) == "NaT" else cell.isoformat()
    if isinstance(cell, np.datetime64):
        return None if np.isnat(cell) else str(cell)
    if type(cell).__name__ in ("NAType", "NaTType"):
        return None
    try:
        return to_number(name, cell)
    except (TypeError, ValueError, MetricBusError):
        raise TypeError(
            f"{about(name)}{where} is {_kind_of(cell)}; a cell may hold {_ACCEPTED}"
        ) from None


def _kind_of(cell: object) -> str:
    """The class; of others than Python's own with the package, which may have an `Image`, too."""
    kind = type(cell)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}'s {kind.__name__}"

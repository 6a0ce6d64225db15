"""The `Table` medium: rows of numbers, text and images, which can be appended to."""

from __future__ import annotations

import datetime
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from metricbus._common.media_base import (
    EncodeContext,
    EncodeJob,
    MediaValue,
    check_text,
    metric_prefix,
)
from metricbus._common.media_records import Cell, TableRecord, encode_rows
from metricbus._common.validation import to_number
from metricbus.errors import MetricBusError
from metricbus.media.arrays import as_array, is_tensor
from metricbus.media.image import Image

_ACCEPTED = "a number, text, a boolean, None, a date or a metricbus Image(...)"
_CELL_BYTES = 64

# Guards `Table._positions`. It is reentrant because a signal handler may log the same table.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)  # its holder may not exist in the child


class _Position(NamedTuple):
    """The id of a table in one run, and the number of its parts and rows logged so far."""

    table: str
    parts: int
    rows: int


class Table(MediaValue):
    """Rows with named columns: `Table(columns=["id", "guess"], rows=[[7, 1], [9, 4]])`.

    Instead of `columns` and `rows`, the table can be made from one argument: a dict of columns, a
    list of dicts with equal keys, a pandas or polars data frame (without its index), a structured
    array, or an array or tensor with two axes, whose columns are named "0", "1" and so on. Columns
    alone make an empty table. Cells are numbers, strings, booleans, None, dates and times (stored
    as ISO 8601 text) and `Image` objects.

    `append()` adds rows. Logging the same object again writes only the rows added since, so its
    cost does not depend on the table's length; without new rows, nothing is logged. A different
    object logged under the same name is a separate table.

    Raises `TypeError` or `ValueError` for arguments that do not make a table. `log()` raises them,
    naming the metric, for repeated column names, rows of the wrong length and unsupported cells.
    """

    def __init__(self, columns: Any = (), rows: Any = None) -> None:
        self._columns, self._rows = _columns_and_rows(columns, rows)
        self._positions: dict[tuple[str, int, str], _Position] = {}  # by run, process and name

    @property
    def columns(self) -> list[Any]:
        """A copy of the column names."""
        return list(self._columns)

    @property
    def rows(self) -> list[Sequence[Any]]:
        """A copy of the list of all rows, logged or not."""
        return list(self._rows)

    def append(self, *rows: Sequence[Any]) -> None:
        """Add rows. They are written by the next `log()` call with this table.

        Raises `TypeError` or `ValueError` if a row has the wrong length or an unsupported cell;
        then no row is added.
        """
        for number, row in enumerate(rows, len(self._rows)):
            _check_length("", row, number, self._columns)
            for column, cell in zip(self._columns, row, strict=True):
                if not isinstance(cell, Image):
                    _check_cell("", number, column, cell)
        self._rows.extend(rows)

    def _capture(self, name: str) -> EncodeJob | None:
        return self._capture_for_run("", name)

    def _capture_for_run(self, run: str, name: str) -> EncodeJob | None:
        """Validate and copy the rows not yet logged in this run under this name."""
        columns = check_columns(name, self._columns)
        key = run, os.getpid(), name  # a forked child has its own copy of the table
        with _lock:
            before = self._positions.get(key) or _Position(os.urandom(6).hex(), 0, 0)
            table, part, first = before
            new_rows = self._rows[first:]
            if part and not new_rows:
                return None
            nbytes, rows = capture_rows(name, columns, new_rows, first)
            after = self._positions[key] = _Position(table, part + 1, first + len(rows))
        encode = partial(_encode, table=table, part=part, first=first, columns=columns, rows=rows)
        return EncodeJob(nbytes, encode, undo=partial(self._restore, key, after, before))

    def _restore(self, key: tuple[str, int, str], after: _Position, before: _Position) -> None:
        with _lock:
            if self._positions.get(key) == after:  # not if another thread has logged more rows
                self._positions[key] = before


def check_columns(name: str, columns: Sequence[Any]) -> list[str]:
    """Return the column names as strings; raise `TypeError` or `ValueError` if any is invalid."""
    if not columns:
        raise ValueError(f"metric {name!r}: a table must have at least one column")
    checked = [check_text(name, f"the column name {column!r:.80}", column) for column in columns]
    for column, count in Counter(checked).items():
        if count > 1:
            raise ValueError(f"metric {name!r}: the table has the column {column!r} twice")
    return checked


def capture_rows(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], first: int = 0
) -> tuple[int, list[list[Any]]]:
    """Validate and copy rows; return their approximate size in bytes, and the rows.

    `first` is the number of the first row. An image becomes a function that encodes it.
    """
    nbytes = 0
    captured: list[list[Any]] = []
    for number, row in enumerate(rows, first):
        _check_length(name, row, number, columns)
        cells = []
        for column, cell in zip(columns, row, strict=True):
            if isinstance(cell, Image):
                size, encoder = cell._capture_cell(name)
                nbytes += size
                cells.append(encoder)
            else:
                cells.append(_check_cell(name, number, column, cell))
        nbytes += _CELL_BYTES * len(cells)
        captured.append(cells)
    return nbytes, captured


def encode_images(rows: Sequence[Sequence[Any]], context: EncodeContext) -> list[list[Cell]]:
    """Return captured rows with their images encoded."""
    return [[cell(context) if callable(cell) else cell for cell in row] for row in rows]


def _encode(
    context: EncodeContext,
    *,
    table: str,
    part: int,
    first: int,
    columns: list[str],
    rows: list[list[Any]],
) -> TableRecord:
    return context.record(
        TableRecord,
        table=table,
        part=part,
        first_row=first,
        rows=len(rows),
        columns=columns,
        file=context.save("tables", ".jsonl", encode_rows(encode_images(rows, context))),
    )


def _columns_and_rows(columns: Any, rows: Any) -> tuple[list[Any], list[Sequence[Any]]]:
    if rows is not None and isinstance(columns, tuple) and not columns and _has_columns(rows):
        return _columns_and_rows(rows, None)
    if rows is not None:
        if isinstance(columns, str):
            raise TypeError(f"columns= must be a list of names, not a string; pass [{columns!r}]")
        return _as_list("columns=", columns), _as_list("rows=", rows)
    if isinstance(columns, Mapping):
        return list(columns), _rows_of_columns(columns)
    if is_tensor(columns):
        columns = as_array("", columns, "an array")
    if _is_list_of_dicts(columns):
        return _columns_of_dicts(columns)
    if isinstance(columns, np.ndarray):
        if columns.dtype.names and columns.ndim == 1:
            fields = [_as_list(field, columns[field]) for field in columns.dtype.names]
            return list(columns.dtype.names), list(zip(*fields, strict=True))
        if columns.ndim != 2:
            raise ValueError(
                "Table() requires an array with two axes or with named fields, not one of shape "
                f"{columns.shape}"
            )
        return [str(number) for number in range(columns.shape[1])], _as_list("", columns)
    if hasattr(columns, "itertuples"):  # pandas
        return list(columns.columns), list(columns.itertuples(index=False, name=None))
    if hasattr(columns, "iter_rows"):  # polars
        return list(columns.columns), list(columns.iter_rows())
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise TypeError(
            f"Table() was given {type(columns).__name__}; expected columns and rows, a dict of "
            "columns, a list of dicts, a pandas or polars data frame, or a numpy array"
        )
    return list(columns), []


def _has_columns(value: Any) -> bool:
    """Check whether the value has column names in addition to rows."""
    return hasattr(value, "itertuples") or hasattr(value, "iter_rows") or _is_list_of_dicts(value)


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def _columns_of_dicts(rows: Sequence[Any]) -> tuple[list[Any], list[Sequence[Any]]]:
    columns = list(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or row.keys() != rows[0].keys():
            raise ValueError(
                f"row {number} is {row!r:.80}; expected a dict with the keys of the first row: "
                f"{', '.join(columns)}"
            )
    return columns, [[row[column] for column in columns] for row in rows]


def _rows_of_columns(columns: Mapping[Any, Any]) -> list[Sequence[Any]]:
    lists = {key: _as_list(f"the column {key!r}", column) for key, column in columns.items()}
    lengths = {key: len(column) for key, column in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a table must have equal lengths, not {lengths}")
    return list(zip(*lists.values(), strict=True))


def _as_list(what: str, value: Any) -> list[Any]:
    """Return cells or rows as a list of Python objects; numpy dates keep their precision."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":
        return [list(row) if row.ndim else row for row in value]
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{what} must be a list, not {type(value).__name__}: {value!r:.80}")
    return list(value)


def _check_length(name: str, row: Any, number: int, columns: Sequence[Any]) -> None:
    prefix = metric_prefix(name)
    is_list = hasattr(row, "__len__") and not isinstance(row, str | bytes | Mapping | Set)
    if not is_list or getattr(row, "shape", None) == ():
        raise TypeError(f"{prefix}row {number} is {type(row).__name__}; expected a list of cells")
    if len(row) != len(columns):
        raise ValueError(
            f"{prefix}row {number} has {len(row)} cells, but the table has {len(columns)} columns: "
            f"{', '.join(map(str, columns))}"
        )


def _check_cell(name: str, number: int, column: str, cell: Any) -> Cell:
    position = f"row {number}, column {column!r}"
    if cell is None or isinstance(cell, bool | np.bool_):
        return None if cell is None else bool(cell)
    if isinstance(cell, str):
        return check_text(name, position, cell)
    if isinstance(cell, datetime.date | datetime.time):  # includes datetime and pandas.Timestamp
        return None if str(cell) == "NaT" else cell.isoformat()
    if isinstance(cell, np.datetime64):
        return None if np.isnat(cell) else str(cell)
    if type(cell).__name__ in ("NAType", "NaTType"):
        return None
    try:
        return to_number(name, cell)
    except (TypeError, ValueError, MetricBusError):
        kind = type(cell)
        package = kind.__module__.partition(".")[0]
        # PIL, for one, also has a class named Image.
        owner = "" if package == "builtins" else f"{package}'s "
        raise TypeError(
            f"{metric_prefix(name)}{position} is {owner}{kind.__name__}; expected {_ACCEPTED}"
        ) from None

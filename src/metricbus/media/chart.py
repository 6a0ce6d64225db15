"""`Chart`: some columns of a table as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from metricbus._common.media_base import (
    EncodeContext,
    EncodeJob,
    MediaValue,
    check_package,
    check_text,
)
from metricbus._common.media_records import ChartRecord, encode_rows
from metricbus.media.arrays import is_tensor, told, view_of
from metricbus.media.table import Table, check_columns, finish_rows, take_rows

ChartKind = Literal["line", "scatter", "bar", "histogram", "confusion"]
_MOST_CLASSES = 200


class Chart(MediaValue):
    """A chart of a table's columns: `Chart(table, kind="line", x="epoch", y=["train", "val"])`.

    `table` is a `Table` or what makes one. `kind` is `line`, `scatter`, `bar`, `histogram` (of `x`
    alone) or `confusion` (a row is one example: `x` its class, `y` the guess, and a second `y`, if
    there is one, how many there were of it). `x` is the first column if left out, and `y`, one
    column or several, what has numbers beside it. The data are kept beside the picture, which
    matplotlib draws in the background.

    A confusion chart is also made of a matrix, `Chart(matrix, kind="confusion", labels=names)`: an
    array or tensor with a row for each class and a column for each guess, of numbers from 0 on.
    """

    def __init__(
        self,
        table: Any,
        kind: ChartKind = "line",
        x: str | None = None,
        y: str | Sequence[str] | None = None,
        title: str = "",
        *,
        labels: Sequence[Any] | None = None,
    ) -> None:
        if kind == "confusion" and _is_matrix(table):
            table, x, y = _counted(table, labels), "class", ["guess", "count"]
        elif labels is not None:
            raise TypeError('labels= goes with a matrix: Chart(matrix, kind="confusion", labels=…)')
        self._table = table if isinstance(table, Table) else Table(table)
        self._kind = kind
        self._x = x
        self._y = [y] if isinstance(y, str) else y
        if not (y is None or isinstance(y, Sequence)):
            raise TypeError(f"y= is a column's name, or a list of them, not {y!r:.80}")
        self._title = title

    def _capture(self, name: str) -> EncodeJob:
        """Checks and copies the columns."""
        check_package(name, "matplotlib")
        if self._kind not in get_args(ChartKind):
            raise ValueError(
                f"metric {name!r}: kind= is one of {', '.join(get_args(ChartKind))}, "
                f"not {self._kind!r}"
            )
        check_text(name, "title=", self._title)
        columns = check_columns(name, self._table.columns)
        nbytes, rows = take_rows(name, columns, self._table.rows)
        if not rows:
            raise ValueError(f"metric {name!r}: a chart of a table without rows shows nothing")
        x, y = self._check_axes(name, columns, rows)
        return EncodeJob(
            nbytes,
            partial(_encode, plot=(self._kind, x, y, self._title), columns=columns, rows=rows),
        )

    def _check_axes(
        self, name: str, columns: list[str], rows: list[list[Any]]
    ) -> tuple[str, list[str]]:
        x = columns[0] if self._x is None else self._x
        numeric = [column for at, column in enumerate(columns) if _is_numeric(rows, at)]
        if self._kind == "histogram":
            y = []
        elif self._y is None:
            others = columns if self._kind == "confusion" else numeric
            y = [column for column in others if column != x]
            y = y[:1] if self._kind == "confusion" else y
        else:
            y = list(self._y)
        for column in (x, *y):
            if column not in columns:
                raise ValueError(
                    f"metric {name!r}: the chart's table has no column {column!r}; "
                    f"it has {', '.join(columns)}"
                )
        if not y and self._kind != "histogram":
            raise ValueError(f"metric {name!r}: a {self._kind} chart needs a y= beside x={x!r}")
        if self._kind == "confusion":
            if len(y) not in (1, 2) or not set(y[1:]) <= set(numeric):
                raise ValueError(
                    f"metric {name!r}: a confusion chart has y= the guesses, or [the guesses, how "
                    f"many there were of each], not {y}"
                )
            classes = {str(row[columns.index(one)]) for row in rows for one in (x, y[0])}
            if len(classes) > _MOST_CLASSES:
                raise ValueError(
                    f"metric {name!r}: a confusion chart of {len(classes)} classes cannot be read; "
                    f"up to {_MOST_CLASSES} are drawn"
                )
            return x, y
        for column in [x] if self._kind == "histogram" else y:
            if column not in numeric:
                raise TypeError(
                    f"metric {name!r}: the column {column!r} has more than numbers; "
                    "here its cells are numbers or None"
                )
        return x, y


def _is_matrix(table: Any) -> bool:
    """Whether it is an array, and not one with the class and the guess of each example."""
    if not (isinstance(table, np.ndarray) and table.dtype.names is None) and not is_tensor(table):
        return False
    return tuple(table.shape[1:]) != (2,) or table.shape[0] == 2


def _counted(matrix: Any, labels: Sequence[Any] | None) -> Table:
    """The counts of a confusion matrix as rows: a class, a guess, and how many there were."""
    counts = view_of("", matrix, "a confusion matrix of real numbers")
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not (counts >= 0).all():
        raise ValueError(
            "a confusion chart takes a square matrix of numbers from 0 on, or a table with a row "
            f"for each example, its class and the guess; not {told(counts)}"
        )
    names = list(range(len(counts))) if labels is None else list(labels)
    if len(names) != len(counts):
        raise ValueError(f"labels= has {len(names)} names for {len(counts)} classes")
    rows = [[names[i], names[j], count.item()] for (i, j), count in np.ndenumerate(counts)]
    return Table(["class", "guess", "count"], rows)


def _is_numeric(rows: list[list[Any]], at: int) -> bool:
    return all(isinstance(row[at], int | float) or row[at] is None for row in rows)


def _encode(
    work: EncodeContext,
    *,
    plot: tuple[ChartKind, str, list[str], str],
    columns: list[str],
    rows: list[list[Any]],
) -> ChartRecord:
    from metricbus.media.chart_render import Plot, draw

    kind, x, y, title = plot
    cells = finish_rows(rows, work)
    data = work.save("charts", ".jsonl", encode_rows(cells))
    by_name = {name: [row[at] for row in cells] for at, name in enumerate(columns)}
    png, width, height = draw(Plot(kind, x, y, title or work.stamp.name, by_name))
    return work.record(
        ChartRecord,
        chart=kind,
        x_column=x,
        y_columns=y,
        title=title,
        columns=columns,
        rows=len(rows),
        data=data,
        picture=work.save("charts", ".png", png),
        width=width,
        height=height,
    )

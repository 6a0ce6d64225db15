"""The `Chart` medium."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue, check_text
from metricbus._common.media_records import ChartRecord, encode_rows
from metricbus._common.optional_imports import check_installed
from metricbus.media.arrays import as_array, describe_array, is_tensor
from metricbus.media.table import Table, capture_rows, check_columns, encode_images

ChartKind = Literal["line", "scatter", "bar", "histogram", "confusion"]
_MAX_CLASSES = 200


class Chart(MediaValue):
    """A chart of table columns: `Chart(table, kind="line", x="epoch", y=["train", "val"])`.

    `table` is a `Table`, or any single argument that `Table` accepts. `x` is a column name, by
    default the first column. `y` is one column name or several, by default all other columns that
    contain only numbers and None. `title` defaults to the metric's name. `kind` is one of

    * "line", "scatter" and "bar": one series for each `y` column, whose cells are numbers or None.
    * "histogram": the distribution of the numeric column `x`; `y` is ignored.
    * "confusion": a confusion matrix of up to 200 classes. Each row has the true class in `x`
      and the predicted class in `y`, by default the first other column. A second `y` column is
      optional: it has the number of examples that the row stands for.

    `Chart(matrix, kind="confusion", labels=names)` draws a confusion matrix from an array or
    tensor: a square matrix of non-negative numbers, with one row per class and one column per
    predicted class. `labels` has the class names, by default 0, 1 and so on. An array of shape
    (n, 2), except (2, 2), is a table of examples instead.

    `log()` copies the rows. A background thread draws the chart as a PNG with matplotlib, and also
    saves the data.

    Requires matplotlib: `pip install 'metricbus[media]'`. Raises `TypeError` or `ValueError` for
    arguments that do not make a table or matrix. `log()` raises them, naming the metric, for
    unknown kinds and columns and for tables without rows, and `MissingPackageError` without
    matplotlib.
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
            table, x, y = _table_of_matrix(table, labels), "class", ["guess", "count"]
        elif labels is not None:
            raise TypeError(
                'labels= requires a matrix: Chart(matrix, kind="confusion", labels=...)'
            )
        self._table = table if isinstance(table, Table) else Table(table)
        self._kind = kind
        self._x = x
        self._y = [y] if isinstance(y, str) else y
        if not (y is None or isinstance(y, Sequence)):
            raise TypeError(f"y= must be a column name or a list of them, not {y!r:.80}")
        self._title = title

    def _capture(self, name: str) -> EncodeJob:
        check_installed("matplotlib", f"metric {name!r}", "'metricbus[media]'")
        if self._kind not in get_args(ChartKind):
            raise ValueError(
                f"metric {name!r}: kind= must be one of {', '.join(get_args(ChartKind))}, "
                f"not {self._kind!r}"
            )
        check_text(name, "title=", self._title)
        columns = check_columns(name, self._table.columns)
        nbytes, rows = capture_rows(name, columns, self._table.rows)
        if not rows:
            raise ValueError(f"metric {name!r}: the table of a chart must have at least one row")
        x, y = self._check_axes(name, columns, rows)
        plot = self._kind, x, y, self._title
        return EncodeJob(nbytes, partial(_encode, plot=plot, columns=columns, rows=rows))

    def _check_axes(
        self, name: str, columns: list[str], rows: list[list[Any]]
    ) -> tuple[str, list[str]]:
        """Return the columns of the x axis and of the y axis."""
        x = columns[0] if self._x is None else self._x
        numeric = [column for index, column in enumerate(columns) if _is_numeric(rows, index)]
        if self._kind == "histogram":
            y = []
        elif self._y is not None:
            y = list(self._y)
        elif self._kind == "confusion":
            y = [column for column in columns if column != x][:1]
        else:
            y = [column for column in numeric if column != x]
        for column in (x, *y):
            if column not in columns:
                raise ValueError(
                    f"metric {name!r}: the chart's table has no column {column!r}; "
                    f"it has {', '.join(columns)}"
                )
        if not y and self._kind != "histogram":
            raise ValueError(
                f"metric {name!r}: a {self._kind} chart needs a y= column in addition to x={x!r}"
            )
        if self._kind == "confusion":
            if len(y) not in (1, 2) or not set(y[1:]) <= set(numeric):
                raise ValueError(
                    f"metric {name!r}: y= of a confusion chart must be the column of predicted "
                    f"classes, or a list of it and a column of counts, not {y}"
                )
            classes = {str(row[columns.index(column)]) for row in rows for column in (x, y[0])}
            if len(classes) > _MAX_CLASSES:
                raise ValueError(
                    f"metric {name!r}: the confusion chart has {len(classes)} classes; the maximum "
                    f"is {_MAX_CLASSES}"
                )
            return x, y
        for column in [x] if self._kind == "histogram" else y:
            if column not in numeric:
                raise TypeError(
                    f"metric {name!r}: the column {column!r} must contain only numbers and None"
                )
        return x, y


def _is_matrix(table: Any) -> bool:
    """Check whether the table is a matrix, rather than an array of classes and predictions."""
    if not (isinstance(table, np.ndarray) and table.dtype.names is None) and not is_tensor(table):
        return False
    return tuple(table.shape[1:]) != (2,) or table.shape[0] == 2


def _table_of_matrix(matrix: Any, labels: Sequence[Any] | None) -> Table:
    """Return a confusion matrix as a table with one row per class and predicted class."""
    counts = as_array("", matrix, "a confusion matrix of real numbers")
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not (counts >= 0).all():
        raise ValueError(
            "a confusion chart requires a square matrix of non-negative numbers, or a table with "
            f"the class and the predicted class of each example, not {describe_array(counts)}"
        )
    names = list(range(len(counts))) if labels is None else list(labels)
    if len(names) != len(counts):
        raise ValueError(f"labels= has {len(names)} names for {len(counts)} classes")
    rows = [[names[i], names[j], count.item()] for (i, j), count in np.ndenumerate(counts)]
    return Table(["class", "guess", "count"], rows)


def _is_numeric(rows: list[list[Any]], index: int) -> bool:
    return all(isinstance(row[index], int | float) or row[index] is None for row in rows)


def _encode(
    context: EncodeContext,
    *,
    plot: tuple[ChartKind, str, list[str], str],
    columns: list[str],
    rows: list[list[Any]],
) -> ChartRecord:
    from metricbus.media.chart_render import Plot, draw

    kind, x, y, title = plot
    cells = encode_images(rows, context)
    data = context.save("charts", ".jsonl", encode_rows(cells))
    by_name = {name: [row[index] for row in cells] for index, name in enumerate(columns)}
    png, width, height = draw(Plot(kind, x, y, title or context.log_context.name, by_name))
    return context.record(
        ChartRecord,
        chart=kind,
        x_column=x,
        y_columns=y,
        title=title,
        columns=columns,
        rows=len(rows),
        data=data,
        picture=context.save("charts", ".png", png),
        width=width,
        height=height,
    )

"""`Chart`: some columns of a table as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

from metricbus.kind import Kind, Taken, Work, check_package, check_text
from metricbus.kinds.table import Table, check_columns, finish_rows, take_rows
from metricbus.media_records import ChartRecord, encode_rows

ChartKind = Literal["line", "scatter", "bar", "histogram", "confusion"]
_MOST_CLASSES = 200


class Chart(Kind):
    """A chart of a table's columns: `Chart(table, kind="line", x="epoch", y=["train", "val"])`.

    `table` is a `Table` or what makes one. `kind` is `line`, `scatter`, `bar`, `histogram` (of `x`
    alone) or `confusion` (a row is one example: `x` its class, `y` the guess). `x` is the first
    column if left out, and `y`, one column or several, what has numbers beside it. The data are
    kept beside the picture, which matplotlib draws in the background.
    """

    def __init__(
        self,
        table: Any,
        kind: ChartKind = "line",
        x: str | None = None,
        y: str | Sequence[str] | None = None,
        title: str = "",
    ) -> None:
        self._table = table if isinstance(table, Table) else Table(table)
        self._kind = kind
        self._x = x
        self._y = [y] if isinstance(y, str) else y
        if not (y is None or isinstance(y, Sequence)):
            raise TypeError(f"y= is a column's name, or a list of them, not {y!r:.80}")
        self._title = title

    def take(self, name: str) -> Taken:
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
        return Taken(
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
            if len(y) != 1:
                raise ValueError(f"metric {name!r}: a confusion chart has one y=, the guesses")
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


def _is_numeric(rows: list[list[Any]], at: int) -> bool:
    return all(isinstance(row[at], int | float) or row[at] is None for row in rows)


def _encode(
    work: Work,
    *,
    plot: tuple[ChartKind, str, list[str], str],
    columns: list[str],
    rows: list[list[Any]],
) -> ChartRecord:
    from metricbus.kinds.plotting import Plot, draw

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

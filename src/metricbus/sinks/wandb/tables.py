"""Tables of Weights & Biases, and the charts that it draws from a table itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from metricbus._common.media_records import Cell, ChartRecord, FileRef, Picture, TableRecord
from metricbus._journal.media_files import MediaFolder

if TYPE_CHECKING:
    import wandb
    from wandb.plot.custom_chart import CustomChart

_MOST_CLASSES = 200  # in a confusion matrix: W&B has a row for each pair


class Tables:
    """Makes tables and charts of the rows in `folder`; `picture` makes what is in a cell of one."""

    def __init__(self, folder: MediaFolder, picture: Callable[[FileRef, str], wandb.Image]) -> None:
        self._folder = folder
        self._picture = picture

    def table(self, record: TableRecord) -> wandb.Table:
        """The rows of one part of a table."""
        return self._table(record.columns, self._folder.rows(record))

    def chart(self, record: ChartRecord) -> CustomChart | None:
        """The chart; None if W&B does not draw such a one."""
        try:
            return self._drawn(record)
        except TypeError:  # values that W&B does not take together
            return None

    def _drawn(self, record: ChartRecord) -> CustomChart | None:
        import wandb

        rows = self._folder.rows(record)
        about: dict[str, Any] = {"title": record.title, "split_table": True}
        x, ys = record.x_column, record.y_columns
        if record.chart == "histogram":
            value = x if x in record.columns else ys[0]
            return wandb.plot.histogram(self._table(record.columns, rows), value, **about)
        if record.chart == "line" and len(ys) > 1 and rows:
            columns = dict(zip(record.columns, zip(*rows, strict=True), strict=True))
            series = [columns[y] for y in ys]
            _take_whole(len(rows) * len(ys))
            return wandb.plot.line_series([columns[x]] * len(ys), series, ys, xname=x, **about)
        if len(ys) != 1 or record.chart not in ("line", "scatter", "bar", "confusion"):
            return None
        if record.chart == "confusion":
            at = record.columns.index
            return _confusion([(row[at(x)], row[at(ys[0])]) for row in rows], about)
        table = self._table(record.columns, rows)
        if record.chart == "line":
            return wandb.plot.line(table, x, ys[0], **about)
        if record.chart == "scatter":
            return wandb.plot.scatter(table, x, ys[0], **about)
        return wandb.plot.bar(table, x, ys[0], **about)

    def _table(self, columns: Sequence[str], rows: list[list[Cell]]) -> wandb.Table:
        import wandb

        data: list[Iterable[Any]] = [
            [
                self._picture(cell.file, cell.caption) if isinstance(cell, Picture) else cell
                for cell in row
            ]
            for row in rows
        ]
        _take_whole(len(data))
        try:
            return wandb.Table(columns=[*columns], data=data)
        except TypeError:
            return wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)


def _confusion(pairs: list[tuple[Cell, Cell]], about: dict[str, Any]) -> CustomChart | None:
    import wandb

    labels: dict[str, Any] = {str(label): label for pair in pairs for label in pair}
    if not labels or len(labels) > _MOST_CLASSES:
        return None
    numeric = all(isinstance(label, int | float) for label in labels.values())
    names = sorted(labels, key=labels.__getitem__ if numeric else None)
    number = {name: at for at, name in enumerate(names)}
    _take_whole(len(names) ** 2)
    return wandb.plot.confusion_matrix(
        y_true=[number[str(actual)] for actual, _ in pairs],
        preds=[number[str(predicted)] for _, predicted in pairs],
        class_names=names,
        **about,
    )


def _take_whole(rows: int) -> None:
    """Has W&B not cut a table of so many rows."""
    import wandb

    # never lowered again: other threads may be at it
    wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, rows)
    wandb.Table.MAX_ARTIFACT_ROWS = max(wandb.Table.MAX_ARTIFACT_ROWS, rows)

"""Converts tables to W&B tables, and charts to the custom charts that W&B draws from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from metricbus._common.media_records import Cell, ChartRecord, FileRef, ImageCell
from metricbus._compat.wandb import raise_row_limits
from metricbus._journal.media_files import MediaFolder

if TYPE_CHECKING:
    import wandb
    from wandb.plot.custom_chart import CustomChart

_MAX_CLASSES = 200  # of a confusion matrix, for which W&B stores a row for each pair


class TableBuilder:
    """Builds tables and charts from the files in `folder`; `to_image` converts image cells."""

    def __init__(
        self, folder: MediaFolder, to_image: Callable[[FileRef, str], wandb.Image]
    ) -> None:
        self._folder = folder
        self._to_image = to_image

    def table(self, columns: Sequence[str], rows: list[list[Cell]]) -> wandb.Table:
        """Return a table with these rows, with its image cells converted."""
        import wandb

        data: list[Iterable[Any]] = [
            [
                self._to_image(cell.file, cell.caption) if isinstance(cell, ImageCell) else cell
                for cell in row
            ]
            for row in rows
        ]
        raise_row_limits(len(data))
        try:
            return wandb.Table(columns=[*columns], data=data)
        except TypeError:
            return wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)

    def chart(self, record: ChartRecord) -> CustomChart | None:
        """Return the chart; None if W&B cannot draw it."""
        try:
            return self._chart(record)
        except TypeError:  # W&B refuses some combinations of values
            return None

    def _chart(self, record: ChartRecord) -> CustomChart | None:
        import wandb

        rows = self._folder.rows(record)
        options: dict[str, Any] = {"title": record.title, "split_table": True}
        x, ys = record.x_column, record.y_columns
        if record.chart == "histogram":
            value = x if x in record.columns else ys[0]
            return wandb.plot.histogram(self.table(record.columns, rows), value, **options)
        if record.chart == "line" and len(ys) > 1 and rows:
            columns = dict(zip(record.columns, zip(*rows, strict=True), strict=True))
            series = [columns[y] for y in ys]
            raise_row_limits(len(rows) * len(ys))
            return wandb.plot.line_series([columns[x]] * len(ys), series, ys, xname=x, **options)
        if len(ys) != 1 or record.chart not in ("line", "scatter", "bar", "confusion"):
            return None
        if record.chart == "confusion":
            index = record.columns.index
            return _confusion([(row[index(x)], row[index(ys[0])]) for row in rows], options)
        plot = getattr(wandb.plot, record.chart)  # line, scatter or bar
        chart: CustomChart = plot(self.table(record.columns, rows), x, ys[0], **options)
        return chart


def _confusion(pairs: list[tuple[Cell, Cell]], options: dict[str, Any]) -> CustomChart | None:
    import wandb

    labels: dict[str, Any] = {str(label): label for pair in pairs for label in pair}
    if not labels or len(labels) > _MAX_CLASSES:
        return None
    is_numeric = all(isinstance(label, int | float) for label in labels.values())
    names = sorted(labels, key=labels.__getitem__ if is_numeric else None)
    indices = {name: index for index, name in enumerate(names)}
    raise_row_limits(len(names) ** 2)
    return wandb.plot.confusion_matrix(
        y_true=[indices[str(actual)] for actual, _ in pairs],
        preds=[indices[str(predicted)] for _, predicted in pairs],
        class_names=names,
        **options,
    )

"""Drawing of charts with matplotlib figures, without windows and pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metricbus.media.histogram_bins import bin_values

_SIZE = (6.4, 4.8)
_DPI = 100
_BINS = 64
_MAX_LABEL = 24
_MAX_LEGEND = 20
_MAX_COUNTED_CLASSES = 20  # confusion charts of more classes show no numbers


class Plot(NamedTuple):
    """What to draw: the kind of chart, the names of its columns, and all columns by name."""

    kind: str
    x: str
    y: Sequence[str]
    title: str
    columns: dict[str, list[Any]]


def draw(plot: Plot) -> tuple[bytes, int, int]:
    """Return the chart as a PNG, with its width and height in pixels."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_escape(plot.title))
    axes.set_xlabel(_escape(plot.x))
    if len(plot.y) == 1:
        axes.set_ylabel(_escape(plot.y[0]))
    canvas = FigureCanvasAgg(figure)
    content = io.BytesIO()
    with np.errstate(all="ignore"):  # values may span all of float64
        _KINDS[plot.kind](axes, plot)
        canvas.print_png(content)  # type: ignore[no-untyped-call]
    width, height = canvas.get_width_height()
    return content.getvalue(), width, height


def _line_or_scatter(axes: Axes, plot: Plot) -> None:
    x = _positions(axes, plot)
    for name in plot.y:
        y, label = _floats(plot.columns[name]), _label(name)
        if plot.kind == "line":
            axes.plot(x, y, label=label, marker="." * (len(x) < 50))
        else:
            axes.scatter(x, y, label=label, s=12, alpha=0.7)
    _legend(axes, plot)


def _bar(axes: Axes, plot: Plot) -> None:
    labels = [_short(label) for label in plot.columns[plot.x]]
    x, width = np.arange(len(labels)), 0.8 / len(plot.y)
    for number, name in enumerate(plot.y):
        shift = (number - (len(plot.y) - 1) / 2) * width
        axes.bar(x + shift, _floats(plot.columns[name]), width, label=_label(name))
    _ticks(axes, labels)
    _legend(axes, plot)


def _histogram(axes: Axes, plot: Plot) -> None:
    values = _floats(plot.columns[plot.x])
    histogram = bin_values(values, min(_BINS, len(values)))
    if histogram.counts:
        axes.stairs(histogram.counts, histogram.edges, fill=True)
    axes.set_ylabel("count")


def _confusion(axes: Axes, plot: Plot) -> None:
    actual, predicted = plot.columns[plot.x], plot.columns[plot.y[0]]
    if len(plot.y) > 1:  # the classes keep the order of the matrix
        weights, classes = plot.columns[plot.y[1]], list(dict.fromkeys([*actual, *predicted]))
    else:
        weights = [1] * len(actual)
        classes = sorted(
            {*actual, *predicted}, key=lambda cls: (isinstance(cls, str), str(type(cls)), cls)
        )
    index = {cls: number for number, cls in enumerate(classes)}
    has_fractions = any(isinstance(n, float) and not n.is_integer() for n in weights)
    counts = np.zeros((len(classes), len(classes)), np.float64 if has_fractions else np.int64)
    for row, column, weight in zip(actual, predicted, weights, strict=True):
        counts[index[row], index[column]] += weight or 0
    axes.imshow(counts, cmap="Blues")
    labels = [_short(cls) for cls in classes]
    axes.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 12 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel(_escape(plot.y[0]))
    axes.set_ylabel(_escape(plot.x))
    if len(classes) <= _MAX_COUNTED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if count > counts.max() / 2 else "black"
            text = f"{count:.3g}" if has_fractions else str(count)
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


_KINDS = {
    "line": _line_or_scatter,
    "scatter": _line_or_scatter,
    "bar": _bar,
    "histogram": _histogram,
    "confusion": _confusion,
}


def _positions(axes: Axes, plot: Plot) -> Any:
    """Return the rows' x coordinates: the column's numbers, or the row numbers for text."""
    column = plot.columns[plot.x]
    if all(isinstance(cell, int | float) or cell is None for cell in column):
        return _floats(column)
    _ticks(axes, [_short(cell) for cell in column])
    return np.arange(len(column))


def _ticks(axes: Axes, labels: Sequence[str]) -> None:
    every = max(1, len(labels) // 40)
    is_long = sum(map(len, labels[::every])) > 60
    positions = list(range(0, len(labels), every))
    axes.set_xticks(positions, labels[::every], rotation=90 if is_long else 0)


def _legend(axes: Axes, plot: Plot) -> None:
    if 1 < len(plot.y) <= _MAX_LEGEND:
        axes.legend()


def _floats(column: Sequence[Any]) -> Any:
    numbers = np.array([np.nan if cell is None else cell for cell in column], np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _short(label: Any) -> str:
    text = str(label)
    return _escape(text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…")


def _label(name: str) -> str:
    """Return a column's name for the legend, which skips labels that begin with an underscore."""
    return _escape(f" {name}" if name.startswith("_") else name)


def _escape(text: str) -> str:
    """Escape dollar signs, between which matplotlib expects mathtext."""
    return text.replace("$", r"\$")

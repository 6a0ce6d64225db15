"""Charts as pictures, by matplotlib's figures alone: no window, no global state of pyplot."""

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
_LONGEST_LABEL = 24
_LONGEST_LEGEND = 20
_MOST_NUMBERS = 20  # classes up to which the counts are written into a confusion chart


class Plot(NamedTuple):
    """What to draw: the columns by name."""

    kind: str
    x: str
    y: Sequence[str]
    title: str
    columns: dict[str, list[Any]]


def draw(plot: Plot) -> tuple[bytes, int, int]:
    """The chart as PNG, with its width and height in pixels."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_literal(plot.title))
    axes.set_xlabel(_literal(plot.x))
    if len(plot.y) == 1:
        axes.set_ylabel(_literal(plot.y[0]))
    canvas = FigureCanvasAgg(figure)
    content = io.BytesIO()
    with np.errstate(all="ignore"):  # a range up to the ends of float64
        _KINDS[plot.kind](axes, plot)
        canvas.print_png(content)  # type: ignore[no-untyped-call]
    width, height = canvas.get_width_height()
    return content.getvalue(), width, height


def _line(axes: Axes, plot: Plot) -> None:
    x = _positions(axes, plot)
    for name in plot.y:
        axes.plot(x, _floats(plot.columns[name]), label=_label(name), marker="." * (len(x) < 50))
    _legend(axes, plot)


def _scatter(axes: Axes, plot: Plot) -> None:
    x = _positions(axes, plot)
    for name in plot.y:
        axes.scatter(x, _floats(plot.columns[name]), label=_label(name), s=12, alpha=0.7)
    _legend(axes, plot)


def _bar(axes: Axes, plot: Plot) -> None:
    labels = [_short(label) for label in plot.columns[plot.x]]
    at, width = np.arange(len(labels)), 0.8 / len(plot.y)
    for number, name in enumerate(plot.y):
        shift = (number - (len(plot.y) - 1) / 2) * width
        axes.bar(at + shift, _floats(plot.columns[name]), width, label=_label(name))
    _ticks(axes, labels)
    _legend(axes, plot)


def _histogram(axes: Axes, plot: Plot) -> None:
    values = _floats(plot.columns[plot.x])
    found = bin_values(values, min(_BINS, len(values)))
    if found.counts:
        axes.stairs(found.counts, found.edges, fill=True)
    axes.set_ylabel("count")


def _confusion(axes: Axes, plot: Plot) -> None:
    actual, guess = plot.columns[plot.x], plot.columns[plot.y[0]]
    if len(plot.y) > 1:  # in the order of a matrix
        times, classes = plot.columns[plot.y[1]], list(dict.fromkeys([*actual, *guess]))
    else:
        times = [1] * len(actual)
        classes = sorted(
            {*actual, *guess}, key=lambda one: (isinstance(one, str), str(type(one)), one)
        )
    index = {one: number for number, one in enumerate(classes)}
    has_shares = any(isinstance(many, float) and not many.is_integer() for many in times)
    counts = np.zeros((len(classes), len(classes)), np.float64 if has_shares else np.int64)
    for one, other, many in zip(actual, guess, times, strict=True):
        counts[index[one], index[other]] += many or 0
    axes.imshow(counts, cmap="Blues")
    labels = [_short(one) for one in classes]
    axes.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 12 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel(_literal(plot.y[0]))
    axes.set_ylabel(_literal(plot.x))
    if len(classes) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if count > counts.max() / 2 else "black"
            text = f"{count:.3g}" if has_shares else str(count)
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


_KINDS = {
    "line": _line,
    "scatter": _scatter,
    "bar": _bar,
    "histogram": _histogram,
    "confusion": _confusion,
}


def _positions(axes: Axes, plot: Plot) -> Any:
    """Where the rows stand: at their numbers, or, of text, one beside the other."""
    column = plot.columns[plot.x]
    if all(isinstance(one, int | float) or one is None for one in column):
        return _floats(column)
    _ticks(axes, [_short(one) for one in column])
    return np.arange(len(column))


def _ticks(axes: Axes, labels: Sequence[str]) -> None:
    every = max(1, len(labels) // 40)
    at = range(0, len(labels), every)
    long = sum(map(len, labels[::every])) > 60
    axes.set_xticks(list(at), labels[::every], rotation=90 if long else 0)


def _legend(axes: Axes, plot: Plot) -> None:
    if 1 < len(plot.y) <= _LONGEST_LEGEND:
        axes.legend()


def _floats(column: Sequence[Any]) -> Any:
    numbers = np.array([np.nan if one is None else one for one in column], np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _short(label: Any) -> str:
    text = str(label)
    return _literal(text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…")


def _label(name: str) -> str:
    """A column's name in the legend, which leaves out what begins with an underscore."""
    return _literal(f" {name}" if name.startswith("_") else name)


def _literal(text: str) -> str:
    """The text as it is: matplotlib takes what stands between dollars for mathematics."""
    return text.replace("$", r"\$")

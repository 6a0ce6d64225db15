"""The pictures: bars beside each other, lines for growth.

They are SVG whose text stays text: small, and a changed figure is a changed line. Nothing in them
depends on when they were drawn. Bars start at zero; where the greatest is many times the least, the
axis is logarithmic and says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.framework.harness import Figure, Result, Role
from benchmarks.framework.numbers import beside_text, in_unit, place

WIDTH = 7.2  # inches, which browsers show as some 690 pixels
MANY_TIMES = 8.0  # from there on, an axis is logarithmic
MOST_TICKS = 3  # on a logarithmic axis below bars, which may be short
MOST_PLACES = 8  # on the x axis of lines: with more, only some have a tick
LONGEST_LINE = 40  # of a name
COLOURS: dict[Role, list[str]] = {
    "ours": ["#1f6fb4", "#0b3c68", "#62a8dd", "#15808a"],
    "peer": ["#e39b54", "#b5542c", "#8c6d1f", "#c7558a", "#7d5aa6", "#a03b3b"],
    "floor": ["#9a9a9a", "#6f6f6f", "#bdbdbd"],
    "control": ["#c9c9c9", "#b0b0b0", "#dddddd"],
}
MARKERS = "osD^vPX*"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metricbus",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw_all(results: Iterable[Result], folder: Path, suffix: str = ".svg") -> list[Path]:
    """A picture for each result that wants one; those of results that are gone are removed."""
    drawn = [draw(result, folder, suffix) for result in results if result.chart != "none"]
    if len(set(drawn)) < len(drawn):
        raise ValueError(f"two results have one id, and one picture: {sorted(map(str, drawn))}")
    for old in set(folder.glob(f"*{suffix}")) - set(drawn):
        old.unlink()
    return drawn


def draw(result: Result, folder: Path, suffix: str = ".svg") -> Path:
    """The picture of a result."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.id}{suffix}"
    with mpl.rc_context(STYLE):
        picture = lines(result) if result.chart == "lines" else bars(result)
        dateless = {"Date": None, "Creator": None} if suffix == ".svg" else None
        picture.savefig(path, metadata=dateless, dpi=100)
    return path


def bars(result: Result) -> Picture:
    """A bar for each figure, the best on top, whiskers from the least round to the most."""
    worst_first = sorted(result.figures, key=lambda figure: figure.median)
    if result.better == "less":
        worst_first.reverse()
    picture = Picture(figsize=(WIDTH, 0.8 + 0.33 * len(worst_first)), layout="constrained")
    axes = picture.add_subplot()
    medians = [figure.median for figure in worst_first]
    axes.barh(
        range(len(worst_first)),
        medians,
        height=0.68,
        color=[COLOURS[figure.role][0] for figure in worst_first],
        xerr=_whiskers(worst_first),
        error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#333333"},
    )
    axes.set_yticks(range(len(worst_first)), [_wrapped(figure.name) for figure in worst_first])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(worst_first) - 0.4)
    _embolden(axes, worst_first)
    _scale_bars(axes, worst_first)
    _label_bars(axes, worst_first, result)
    _head(picture, result, "log" in axes.get_xscale())
    return picture


def _whiskers(figures: Sequence[Figure]) -> list[list[float]]:
    """How far they reach below and above the medians; a single round has none."""
    reach = [
        (figure.median - figure.spread[0], figure.spread[1] - figure.median)
        if len(figure.samples) > 1
        else (math.nan, math.nan)
        for figure in figures
    ]
    return [[below for below, _ in reach], [above for _, above in reach]]


def _embolden(axes: Axes, figures: Sequence[Figure]) -> None:
    """Colour alone does not tell everybody which bar is ours."""
    for label, figure in zip(axes.get_yticklabels(), figures, strict=True):
        if figure.role == "ours":
            label.set_fontweight("bold")


def _scale_bars(axes: Axes, figures: Sequence[Figure]) -> None:
    """Room on the right for the labels, and no ticks below them."""
    ends = [end for figure in figures for end in figure.spread]
    least, most = min(ends), max(ends)
    if least > 0 and most / least >= MANY_TIMES:
        axes.set_xscale("log")
        start = least / 2.5
        axes.set_xlim(start, start * (most / start) ** 1.45)
        ticks = [tick for tick in LogLocator().tick_values(start, most) if start <= tick <= most]
        axes.set_xticks(ticks[:: 1 + len(ticks) // MOST_TICKS])
    else:
        axes.set_xlim(min(least, 0) * 1.1, max(most, 0) * 1.4 or 1)
    _plain_numbers(axes.xaxis)


def _label_bars(axes: Axes, figures: Sequence[Figure], result: Result) -> None:
    """The median, and how many times the one that it is beside."""
    beside = result.figure(result.beside) if result.beside else None
    for row, figure in enumerate(figures):
        text = in_unit(figure.median, result.unit)
        if ratio := beside_text(figure, beside):
            text += f"  ({ratio}×)"
        axes.annotate(
            text,
            (figure.spread[1], row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color="#222222",
        )


def lines(result: Result) -> Picture:
    """A line for each arm over `at`; whiskers from the least round to the most."""
    arms = _arms(result)
    picture = Picture(figsize=(WIDTH, 3.0 + 0.11 * len(arms)), layout="constrained")
    axes = picture.add_subplot()
    seen: dict[Role, int] = {}
    for number, (name, figures) in enumerate(arms.items()):
        role = figures[0].role
        colour = COLOURS[role][seen.get(role, 0) % len(COLOURS[role])]
        seen[role] = seen.get(role, 0) + 1
        axes.errorbar(
            [figure.at or 0.0 for figure in figures],
            [figure.median for figure in figures],
            yerr=_whiskers(figures),
            label=_wrapped(name),
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4.5,
            linewidth=2.0 if role == "ours" else 1.3,
            linestyle="-" if role in ("ours", "peer") else "--",
            elinewidth=0.9,
            capsize=2,
        )
    _scale_lines(axes, result)
    _head(picture, result, "log" in axes.get_yscale())
    axes.set_xlabel(result.x)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    picture.legend(loc="outside lower left", ncols=2, frameon=False)
    return picture


def _arms(result: Result) -> dict[str, list[Figure]]:
    """The figures of each name, from left to right."""
    arms: dict[str, list[Figure]] = {}
    for figure in sorted(result.figures, key=lambda figure: figure.at or 0.0):
        arms.setdefault(figure.name, []).append(figure)
    names = dict.fromkeys(figure.name for figure in result.figures)
    return {name: arms[name] for name in names}


def _scale_lines(axes: Axes, result: Result) -> None:
    across = [figure.at or 0.0 for figure in result.figures]
    up = [end for figure in result.figures for end in figure.spread]
    if min(across) > 0 and max(across) / min(across) >= MANY_TIMES:
        axes.set_xscale("log")
    if min(up) > 0 and max(up) / min(up) >= MANY_TIMES:
        axes.set_yscale("log")
    else:
        axes.set_ylim(min(*up, 0) * 1.15, max(*up, 0) * 1.15 or 1)
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    if len(places := sorted(set(across))) <= MOST_PLACES:
        axes.set_xticks(places)


def _plain_numbers(axis: Any) -> None:
    """`10,000` and not a power of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: place(value)))
    axis.set_minor_locator(NullLocator())


def _head(picture: Picture, result: Result, logarithmic: bool) -> None:
    """What is shown, above the picture on the left; the title stands in the page."""
    text: str = "times" if result.unit == "x" else result.unit
    if result.beside and result.chart == "bars":
        text += f"  (× {result.beside})"
    text += f", {result.better} is better"
    if logarithmic:
        text += ", logarithmic"
    picture.suptitle(text, x=0.01, ha="left", fontsize=10)


def _wrapped(name: str) -> str:
    """A long name in two lines, as its end may be what tells it from the next."""
    return textwrap.fill(name, LONGEST_LINE)

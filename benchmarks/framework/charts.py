"""Charts of the results: bars for arms, lines for results with an x axis.

Charts are SVG files that keep text as text, which makes them small and their diffs readable. The
output is deterministic. Bars start at zero. If the values span a wide range, the axis is
logarithmic and labeled as such.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Chart
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.framework.harness import Figure, Result, Role
from benchmarks.framework.numbers import format_tick, in_unit, ratio_text

WIDTH = 7.2  # inches; browsers show about 690 pixels
LOG_SCALE_RATIO = 8.0  # ratio of largest to smallest value from which an axis is logarithmic
MAX_TICKS = 3  # on a logarithmic axis below bars, which may be short
MAX_POSITIONS = 8  # on the x axis of lines; with more positions, only some have a tick
MAX_NAME_WIDTH = 40  # characters per line
COLORS: dict[Role, list[str]] = {
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
    """Draw a chart for each result that has one; remove charts of other results."""
    drawn = [draw(result, folder, suffix) for result in results if result.chart != "none"]
    if len(set(drawn)) < len(drawn):
        raise ValueError(f"Several results have the same id: {sorted(map(str, drawn))}")
    for old in set(folder.glob(f"*{suffix}")) - set(drawn):
        old.unlink()
    return drawn


def draw(result: Result, folder: Path, suffix: str = ".svg") -> Path:
    """Draw the chart of a result; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.id}{suffix}"
    with mpl.rc_context(STYLE):
        chart = lines(result) if result.chart == "lines" else bars(result)
        metadata = {"Date": None, "Creator": None} if suffix == ".svg" else None
        chart.savefig(path, metadata=metadata, dpi=100)
    return path


def bars(result: Result) -> Chart:
    """Draw a bar per figure, best on top; whiskers span the smallest to the largest round."""
    worst_first = sorted(result.figures, key=lambda figure: figure.median)
    if result.better == "lower":
        worst_first.reverse()
    chart = Chart(figsize=(WIDTH, 0.8 + 0.33 * len(worst_first)), layout="constrained")
    axes = chart.add_subplot()
    medians = [figure.median for figure in worst_first]
    axes.barh(
        range(len(worst_first)),
        medians,
        height=0.68,
        color=[COLORS[figure.role][0] for figure in worst_first],
        xerr=_whiskers(worst_first),
        error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#333333"},
    )
    axes.set_yticks(range(len(worst_first)), [_wrapped(figure.name) for figure in worst_first])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(worst_first) - 0.4)
    _embolden(axes, worst_first)
    _scale_bars(axes, worst_first)
    _label_bars(axes, worst_first, result)
    _head(chart, result, "log" in axes.get_xscale())
    return chart


def _whiskers(figures: Sequence[Figure]) -> list[list[float]]:
    """Return the lengths of the whiskers below and above the medians, or NaN for a single round."""
    reach = [
        (figure.median - figure.spread[0], figure.spread[1] - figure.median)
        if len(figure.samples) > 1
        else (math.nan, math.nan)
        for figure in figures
    ]
    return [[below for below, _ in reach], [above for _, above in reach]]


def _embolden(axes: Axes, figures: Sequence[Figure]) -> None:
    """Set the names of metricbus arms in bold, so that they do not depend on color alone."""
    for label, figure in zip(axes.get_yticklabels(), figures, strict=True):
        if figure.role == "ours":
            label.set_fontweight("bold")


def _scale_bars(axes: Axes, figures: Sequence[Figure]) -> None:
    """Set the scale, with space on the right for labels and no ticks below them."""
    ends = [end for figure in figures for end in figure.spread]
    least, most = min(ends), max(ends)
    if least > 0 and most / least >= LOG_SCALE_RATIO:
        axes.set_xscale("log")
        start = least / 2.5
        axes.set_xlim(start, start * (most / start) ** 1.45)
        ticks = [tick for tick in LogLocator().tick_values(start, most) if start <= tick <= most]
        axes.set_xticks(ticks[:: 1 + len(ticks) // MAX_TICKS])
    else:
        axes.set_xlim(min(least, 0) * 1.1, max(most, 0) * 1.4 or 1)
    _plain_numbers(axes.xaxis)


def _label_bars(axes: Axes, figures: Sequence[Figure], result: Result) -> None:
    """Label each bar with its median and its ratio to the baseline."""
    baseline = result.figure(result.baseline) if result.baseline else None
    for row, figure in enumerate(figures):
        text = in_unit(figure.median, result.unit)
        if ratio := ratio_text(figure, baseline):
            text += f"  ({ratio}×)"
        axes.annotate(
            text,
            (figure.spread[1], row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color="#222222",
        )


def lines(result: Result) -> Chart:
    """Draw a line for each arm, with whiskers from the smallest to the largest round."""
    arms = _arms(result)
    chart = Chart(figsize=(WIDTH, 3.0 + 0.11 * len(arms)), layout="constrained")
    axes = chart.add_subplot()
    lines_by_role: dict[Role, int] = {}
    for number, (name, figures) in enumerate(arms.items()):
        role = figures[0].role
        color = COLORS[role][lines_by_role.get(role, 0) % len(COLORS[role])]
        lines_by_role[role] = lines_by_role.get(role, 0) + 1
        axes.errorbar(
            [figure.x or 0.0 for figure in figures],
            [figure.median for figure in figures],
            yerr=_whiskers(figures),
            label=_wrapped(name),
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4.5,
            linewidth=2.0 if role == "ours" else 1.3,
            linestyle="-" if role in ("ours", "peer") else "--",
            elinewidth=0.9,
            capsize=2,
        )
    _scale_lines(axes, result)
    _head(chart, result, "log" in axes.get_yscale())
    axes.set_xlabel(result.x_label)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    chart.legend(loc="outside lower left", ncols=2, frameon=False)
    return chart


def _arms(result: Result) -> dict[str, list[Figure]]:
    """Return the figures of each arm, sorted by x."""
    arms: dict[str, list[Figure]] = {}
    for figure in sorted(result.figures, key=lambda figure: figure.x or 0.0):
        arms.setdefault(figure.name, []).append(figure)
    names = dict.fromkeys(figure.name for figure in result.figures)
    return {name: arms[name] for name in names}


def _scale_lines(axes: Axes, result: Result) -> None:
    positions = [figure.x or 0.0 for figure in result.figures]
    ends = [end for figure in result.figures for end in figure.spread]
    if min(positions) > 0 and max(positions) / min(positions) >= LOG_SCALE_RATIO:
        axes.set_xscale("log")
    if min(ends) > 0 and max(ends) / min(ends) >= LOG_SCALE_RATIO:
        axes.set_yscale("log")
    else:
        axes.set_ylim(min(*ends, 0) * 1.15, max(*ends, 0) * 1.15 or 1)
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    if len(ticks := sorted(set(positions))) <= MAX_POSITIONS:
        axes.set_xticks(ticks)


def _plain_numbers(axis: Any) -> None:
    """Show ticks as plain numbers, such as `10,000`, instead of powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axis.set_minor_locator(NullLocator())


def _head(chart: Chart, result: Result, logarithmic: bool) -> None:
    """Write the unit above the chart; the page contains the title."""
    text: str = "ratio" if result.unit == "x" else result.unit
    if result.baseline and result.chart == "bars":
        text += f"  (× {result.baseline})"
    text += f", {result.better} is better"
    if logarithmic:
        text += ", logarithmic"
    chart.suptitle(text, x=0.01, ha="left", fontsize=10)


def _wrapped(name: str) -> str:
    """Wrap a long name, since names may differ only at the end."""
    return textwrap.fill(name, MAX_NAME_WIDTH)

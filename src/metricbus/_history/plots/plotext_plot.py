"""Draws panels as text in the terminal with plotext."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from metricbus._common.optional_imports import import_optional
from metricbus._history.columns import Floats
from metricbus._history.plots.downsample import downsample
from metricbus._history.plots.panels import Panel, PlotLine
from metricbus._history.plots.text_width import shorten

_COLORS = ("blue+", "orange+", "green+", "red+", "magenta+", "cyan+", "gray+")
_MIN_HEIGHT, _MAX_HEIGHT = 8, 22
_MAX_TICKS = 8


def render_text(
    panels: Sequence[Panel], *, width: int, height: int, log: bool = False, color: bool = False
) -> str:
    """Return the panels one below the other, each no larger than a screen of the given size."""
    plotext = import_optional("plotext", "plot --term", "'metricbus[cli]'")
    height = max(_MIN_HEIGHT, min(_MAX_HEIGHT, height - 2))
    text = "\n".join(_render(plotext, panel, width, height, log=log) for panel in panels)
    if color:
        return text
    lines = str(plotext.uncolorize(text)).split("\n")
    return "\n".join(line.rstrip() for line in lines)


def _render(plotext: Any, panel: Panel, width: int, height: int, *, log: bool) -> str:
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.title(shorten(panel.title, width - 4))
    plotext.xlabel(shorten(panel.x_label, width - 4))
    log = log and not panel.bars
    n_lines = len(panel.lines)
    for index, line in enumerate(panel.lines):
        style: dict[str, Any] = {"color": _COLORS[index % len(_COLORS)]}
        style["label"] = shorten(line.label, width // 3) if n_lines > 1 else None
        if panel.bars:
            bar_width = 0.8 / n_lines
            center = line.x + (index - (n_lines - 1) / 2) * bar_width
            valid = ~np.isnan(line.y)
            plotext.bar(center[valid].tolist(), line.y[valid].tolist(), width=bar_width, **style)
            plotext.xticks(_ticks(line.x))
        else:
            _draw_line(plotext, line, width, style, log=log)
    if log and any((line.smooth > 0).any() for line in panel.lines):
        plotext.yscale("log")
    return str(plotext.build()).rstrip("\n") + "\n" + _omissions(panel, log=log)


def _draw_line(
    plotext: Any, line: PlotLine, width: int, style: dict[str, Any], *, log: bool
) -> None:
    """Draw each stretch between two gaps separately, because plotext does not support NaN."""
    y = np.where(line.smooth > 0, line.smooth, np.nan) if log else line.smooth
    kept = downsample(line.x, y, 2 * width)
    for x_part, y_part in _split_at_gaps(line.x[kept], y[kept]):
        plotext.plot(x_part.tolist(), y_part.tolist(), marker="braille", **style)
        style = style | {"label": None}


def _ticks(epochs: Floats) -> list[int]:
    unique = sorted({int(epoch) for epoch in epochs})
    return unique[:: -(-len(unique) // _MAX_TICKS)] if unique else []


def _split_at_gaps(x: Floats, y: Floats) -> list[tuple[Floats, Floats]]:
    gaps = np.flatnonzero(np.isnan(y))
    edges = [-1, *gaps.tolist(), len(y)]
    spans = [(start + 1, end) for start, end in pairwise(edges)]
    return [(x[start:end], y[start:end]) for start, end in spans if end > start]


def _omissions(panel: Panel, *, log: bool) -> str:
    """Return a line that counts the values that are not drawn; empty if all are."""
    lines = panel.lines
    counts = []
    if gaps := sum(int(np.isnan(line.y).sum()) for line in lines):
        counts.append(f"{gaps:,} not finite")
    if log and (below := sum(int((line.smooth <= 0).sum()) for line in lines)):
        counts.append(f"{below:,} not above 0")
    return f"not drawn: {', '.join(counts)}\n" if counts else ""

"""Panels as characters in the terminal, by plotext."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from metricbus._common.optional_imports import import_optional
from metricbus._history.plots.downsample import thinned
from metricbus._history.plots.panels import Floats, Line, Panel
from metricbus._history.plots.text_width import shown

_COLOURS = ("blue+", "orange+", "green+", "red+", "magenta+", "cyan+", "gray+")
_TALLEST = 22
_LOWEST = 8


def text_of(
    panels: Sequence[Panel], *, width: int, height: int, log: bool = False, colour: bool = False
) -> str:
    """The panels below each other, each at most as wide and as high as a screen."""
    plotext = import_optional("plotext", "plot --term", "'metricbus[cli]'")
    height = max(_LOWEST, min(_TALLEST, height - 2))
    drawn = [_drawn(plotext, panel, width, height, log=log) for panel in panels]
    text = "\n".join(drawn)
    if colour:
        return text
    lines = str(plotext.uncolorize(text)).split("\n")
    return "\n".join(line.rstrip() for line in lines)


def _drawn(plotext: Any, panel: Panel, width: int, height: int, *, log: bool) -> str:
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.title(shown(panel.title, width - 4))
    plotext.xlabel(shown(panel.x_label, width - 4))
    log = log and not panel.bars
    for index, line in enumerate(panel.lines):
        pen: dict[str, Any] = {"color": _COLOURS[index % len(_COLOURS)]}
        pen["label"] = shown(line.label, width // 3) if len(panel.lines) > 1 else None
        if panel.bars:
            _draw_bars(plotext, line, (index, len(panel.lines)), pen)
            plotext.xticks(_ticks(line.x))
        else:
            _draw_line(plotext, line, width, pen, log=log)
    if log and any((line.smooth > 0).any() for line in panel.lines):
        plotext.yscale("log")
    return str(plotext.build()).rstrip("\n") + "\n" + _notes(panel, log=log)


def _draw_line(plotext: Any, line: Line, width: int, pen: dict[str, Any], *, log: bool) -> None:
    """A piece for each stretch between two gaps: plotext knows no NaN."""
    y = np.where(line.smooth > 0, line.smooth, np.nan) if log else line.smooth
    kept = thinned(line.x, y, 2 * width)
    for x_piece, y_piece in _pieces(line.x[kept], y[kept]):
        plotext.plot(x_piece.tolist(), y_piece.tolist(), marker="braille", **pen)
        pen = pen | {"label": None}


def _draw_bars(plotext: Any, line: Line, place: tuple[int, int], pen: dict[str, Any]) -> None:
    """Beside those of other runs: `place` is which of how many."""
    index, n_lines = place
    width = 0.8 / n_lines
    middle = line.x + (index - (n_lines - 1) / 2) * width
    there = ~np.isnan(line.y)
    plotext.bar(middle[there].tolist(), line.y[there].tolist(), width=width, **pen)


def _ticks(epochs: Floats) -> list[int]:
    """At most eight of them."""
    numbers = sorted({int(epoch) for epoch in epochs})
    return numbers[:: -(-len(numbers) // 8)] if numbers else []


def _pieces(x: Floats, y: Floats) -> list[tuple[Floats, Floats]]:
    """What lies between gaps."""
    gaps = np.flatnonzero(np.isnan(y))
    edges = [-1, *gaps.tolist(), len(y)]
    spans = [(start + 1, end) for start, end in pairwise(edges)]
    return [(x[start:end], y[start:end]) for start, end in spans if end > start]


def _notes(panel: Panel, *, log: bool) -> str:
    """What the picture cannot show."""
    lines = panel.lines
    notes = []
    if gaps := sum(int(np.isnan(line.y).sum()) for line in lines):
        notes.append(f"{gaps:,} not finite")
    if log and (below := sum(int((line.smooth <= 0).sum()) for line in lines)):
        notes.append(f"{below:,} not above 0")
    return f"not drawn: {', '.join(notes)}\n" if notes else ""

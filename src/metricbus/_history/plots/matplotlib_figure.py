"""Panels as pictures, by matplotlib.

Names are data: nothing in them is read as a formula, and one that begins with `_` has its place in
the legend like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metricbus._common.optional_imports import import_optional
from metricbus._history.plots.downsample import thinned
from metricbus._history.plots.panels import Floats, Line, Panel, matching, panels_of
from metricbus._history.plots.text_width import shown
from metricbus._history.series_source import SeriesSource

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

_BUCKETS = 2000  # more than the columns of pixels that an axis has
_COLUMNS = 3
_SIZE = (5.2, 3.4)  # inches of one panel
_DPI = 110
_LEGEND = 20  # lines of a legend; more would cover the picture


def draw_on_axes(
    history: SeriesSource,
    names: Sequence[str],
    *,
    x: str,
    smooth: float,
    ax: Axes | None,
    log: bool,
) -> Axes:
    """Series of one run in one pair of axes, made by pyplot if there is none: notebooks show it."""
    import_optional("matplotlib", "history.plot()", "matplotlib")
    chosen = matching(history.names(), names)
    panel = panels_of([history], chosen, x=x, smooth=smooth, together=True)[0]
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(layout="constrained")
    _draw(ax, panel, log=log, legend=True)
    return ax


def figure_of(panels: Sequence[Panel], *, title: str, log: bool = False) -> Figure:
    """A figure that belongs to no window: it needs no display, whatever the settings say."""
    import_optional("matplotlib", "plot", "'metricbus[media]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_columns = min(len(panels), _COLUMNS if len(panels) > 4 else 2)
    n_rows = -(-len(panels) // n_columns)
    scale = 1.5 if len(panels) == 1 else 1.0
    size = (_SIZE[0] * n_columns * scale, _SIZE[1] * n_rows * scale + 0.3)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(shown(title), parse_math=False)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for ax, panel in zip(grid, panels, strict=False):
        _draw(ax, panel, log=log, legend=len(panel.lines) > 1)
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the picture in the format that the suffix names; `OSError` where that cannot be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path)


def _draw(ax: Axes, panel: Panel, *, log: bool, legend: bool) -> None:
    ax.set_title(shown(panel.title), fontsize="medium", parse_math=False)
    ax.set_xlabel(shown(panel.x_label), parse_math=False)
    if panel.y_label != panel.title:
        ax.set_ylabel(shown(panel.y_label), parse_math=False)
    ax.grid(alpha=0.3)
    handles = _draw_bars(ax, panel.lines) if panel.bars else _draw_lines(ax, panel.lines)
    if log and not panel.bars:
        _make_logarithmic(ax, panel.lines)
    if legend and handles:
        _add_legend(ax, handles, [line.label for line in panel.lines])


def _draw_lines(ax: Axes, lines: Sequence[Line]) -> list[Artist]:
    handles: list[Artist] = []
    for index, line in enumerate(lines):
        colour = f"C{index % 10}"
        if line.smooth is not line.y:
            _draw_curve(ax, line.x, line.y, colour, faint=True)
        handles.append(_draw_curve(ax, line.x, line.smooth, colour))
        gaps = line.x[np.isnan(line.y)]
        if len(gaps):
            _mark_gaps(ax, gaps, colour)
        if line.partial:
            x, y = zip(*line.partial, strict=True)
            ax.plot(x, y, "o", color=colour, fillstyle="none")
    return handles


def _draw_curve(ax: Axes, x: Floats, y: Floats, colour: str, *, faint: bool = False) -> Artist:
    kept = thinned(x, y, _BUCKETS)
    x, y = x[kept], y[kept]
    width, alpha = (0.8, 0.3) if faint else (1.5, 1.0)
    (curve,) = ax.plot(x, y, color=colour, linewidth=width, alpha=alpha)
    alone = _alone(y)
    ax.plot(x[alone], y[alone], ".", color=colour, alpha=alpha)
    return curve


def _alone(y: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Points with no neighbour: a line would not show them."""
    gap = np.concatenate([[True], np.isnan(y), [True]])
    alone: np.ndarray[tuple[int], np.dtype[np.bool_]] = ~gap[1:-1] & gap[:-2] & gap[2:]
    return alone


def _mark_gaps(ax: Axes, x: Floats, colour: str) -> None:
    """Crosses at the lower edge where a value was NaN or infinite."""
    if len(x) > _BUCKETS:
        x = x[np.unique(np.linspace(0, len(x) - 1, _BUCKETS).astype(int))]
    lower_edge = ax.get_xaxis_transform()
    ax.plot(x, np.full(len(x), 0.02), "x", color=colour, transform=lower_edge, markersize=4)


def _draw_bars(ax: Axes, lines: Sequence[Line]) -> list[Artist]:
    handles: list[Artist] = []
    width = 0.8 / max(len(lines), 1)
    for index, line in enumerate(lines):
        middle = line.x + (index - (len(lines) - 1) / 2) * width
        handles.append(ax.bar(middle, np.nan_to_num(line.y), width, color=f"C{index % 10}")[0:1][0])
    ax.locator_params(axis="x", integer=True)
    ax.margins(y=0.05 if len(lines) == 1 else 0.3)  # the legend stands above the bars
    return handles


def _make_logarithmic(ax: Axes, lines: Sequence[Line]) -> None:
    """Where some values are not above zero, the scale is linear around it and shows them all."""
    columns = [column for line in lines for column in (line.y, line.smooth)]
    values = np.concatenate([column[~np.isnan(column)] for column in columns] or [np.zeros(0)])
    sizes = np.abs(values[values != 0])
    if not len(sizes):
        return
    if (values > 0).all():
        ax.set_yscale("log")
        return
    ax.set_yscale("symlog", linthresh=max(float(sizes.min()), float(sizes.max()) * 1e-8))
    ax.set_ylabel(f"{ax.get_ylabel()} (linear around 0)".strip(), parse_math=False)


def _add_legend(ax: Axes, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    legend = ax.legend(handles[:_LEGEND], ["."] * len(handles[:_LEGEND]), fontsize="small")
    for text, label in zip(legend.get_texts(), labels, strict=False):
        text.set_parse_math(False)
        text.set_text(shown(label))
    if len(labels) > _LEGEND:
        legend.set_title(f"the first {_LEGEND} of {len(labels)}")

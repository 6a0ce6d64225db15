"""Draws panels with matplotlib.

Names are shown literally: they are never parsed as formulas, and names that start with `_` appear
in legends.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from metricbus._common.optional_imports import import_optional
from metricbus._history.columns import Floats
from metricbus._history.plots.downsample import downsample
from metricbus._history.plots.panels import Panel, PlotLine, make_panels, match_names
from metricbus._history.plots.text_width import shorten
from metricbus._history.series_source import SeriesSource

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGE_SUFFIXES = (".png", ".svg", ".pdf")

_BUCKETS = 2000  # more than the pixel columns of axes
_MAX_GRID_COLUMNS = 3
_PANEL_INCHES = (5.2, 3.4)
_DPI = 110
_MAX_LEGEND_LINES = 20


def draw_on_axes(
    source: SeriesSource, names: Sequence[str], *, x: str, smooth: float, ax: Axes | None, log: bool
) -> Axes:
    """Draw series of one run into `ax`; if None, into a pyplot figure, which notebooks display."""
    import_optional("matplotlib", "history.plot()", "matplotlib")
    matching = match_names(source.names(), names)
    panel = make_panels([source], matching, x=x, smooth=smooth, together=True)[0]
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(layout="constrained")
    _draw(ax, panel, log=log, legend=True)
    return ax


def make_figure(panels: Sequence[Panel], *, title: str, log: bool = False) -> Figure:
    """Draw panels into a new figure without a window: no display or backend is needed."""
    import_optional("matplotlib", "plot", "'metricbus[media]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_columns = min(len(panels), _MAX_GRID_COLUMNS if len(panels) > 4 else 2)
    n_rows = -(-len(panels) // n_columns)
    scale = 1.5 if len(panels) == 1 else 1.0
    size = (_PANEL_INCHES[0] * n_columns * scale, _PANEL_INCHES[1] * n_rows * scale + 0.3)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(shorten(title), parse_math=False)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for ax, panel in zip(grid, panels, strict=False):
        _draw(ax, panel, log=log, legend=len(panel.lines) > 1)
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the suffix. Raises `OSError` if that fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path)


def _draw(ax: Axes, panel: Panel, *, log: bool, legend: bool) -> None:
    ax.set_title(shorten(panel.title), fontsize="medium", parse_math=False)
    ax.set_xlabel(shorten(panel.x_label), parse_math=False)
    if panel.y_label != panel.title:
        ax.set_ylabel(shorten(panel.y_label), parse_math=False)
    ax.grid(alpha=0.3)
    handles = _draw_bars(ax, panel.lines) if panel.bars else _draw_lines(ax, panel.lines)
    if log and not panel.bars:
        _set_log_scale(ax, panel.lines)
    if legend and handles:
        _add_legend(ax, handles, [line.label for line in panel.lines])


def _draw_lines(ax: Axes, lines: Sequence[PlotLine]) -> list[Artist]:
    handles: list[Artist] = []
    for index, line in enumerate(lines):
        color = f"C{index % 10}"
        if line.smooth is not line.y:
            _draw_curve(ax, line.x, line.y, color, faint=True)
        handles.append(_draw_curve(ax, line.x, line.smooth, color))
        gaps = line.x[np.isnan(line.y)]
        if len(gaps):
            _mark_gaps(ax, gaps, color)
        if line.partial:
            x, y = zip(*line.partial, strict=True)
            ax.plot(x, y, "o", color=color, fillstyle="none")
    return handles


def _draw_curve(ax: Axes, x: Floats, y: Floats, color: str, *, faint: bool = False) -> Artist:
    kept = downsample(x, y, _BUCKETS)
    x, y = x[kept], y[kept]
    width, alpha = (0.8, 0.3) if faint else (1.5, 1.0)
    (curve,) = ax.plot(x, y, color=color, linewidth=width, alpha=alpha)
    # A line does not show a point without neighbors.
    isolated = _is_isolated(y)
    ax.plot(x[isolated], y[isolated], ".", color=color, alpha=alpha)
    return curve


def _is_isolated(y: Floats) -> NDArray[np.bool_]:
    gap = np.concatenate([[True], np.isnan(y), [True]])
    isolated: NDArray[np.bool_] = ~gap[1:-1] & gap[:-2] & gap[2:]
    return isolated


def _mark_gaps(ax: Axes, x: Floats, color: str) -> None:
    """Draw crosses at the lower edge where a value is NaN or infinite."""
    if len(x) > _BUCKETS:
        x = x[np.unique(np.linspace(0, len(x) - 1, _BUCKETS).astype(int))]
    lower_edge = ax.get_xaxis_transform()
    ax.plot(x, np.full(len(x), 0.02), "x", color=color, transform=lower_edge, markersize=4)


def _draw_bars(ax: Axes, lines: Sequence[PlotLine]) -> list[Artist]:
    handles: list[Artist] = []
    width = 0.8 / max(len(lines), 1)
    for index, line in enumerate(lines):
        center = line.x + (index - (len(lines) - 1) / 2) * width
        handles.append(ax.bar(center, np.nan_to_num(line.y), width, color=f"C{index % 10}")[0:1][0])
    ax.locator_params(axis="x", integer=True)
    # Several lines need room for a legend above the bars.
    ax.margins(y=0.05 if len(lines) == 1 else 0.3)
    return handles


def _set_log_scale(ax: Axes, lines: Sequence[PlotLine]) -> None:
    """Make the y axis logarithmic, and linear around 0 if some values are not positive."""
    columns = [column for line in lines for column in (line.y, line.smooth)]
    values = np.concatenate([column[~np.isnan(column)] for column in columns] or [np.zeros(0)])
    magnitudes = np.abs(values[values != 0])
    if not len(magnitudes):
        return
    if (values > 0).all():
        ax.set_yscale("log")
        return
    threshold = max(float(magnitudes.min()), float(magnitudes.max()) * 1e-8)
    ax.set_yscale("symlog", linthresh=threshold)
    ax.set_ylabel(f"{ax.get_ylabel()} (linear around 0)".strip(), parse_math=False)


def _add_legend(ax: Axes, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    # matplotlib hides labels that start with "_" and parses formulas, so texts are set afterwards.
    handles = handles[:_MAX_LEGEND_LINES]
    legend = ax.legend(handles, ["."] * len(handles), fontsize="small")
    for text, label in zip(legend.get_texts(), labels, strict=False):
        text.set_parse_math(False)
        text.set_text(shorten(label))
    if len(labels) > _MAX_LEGEND_LINES:
        legend.set_title(f"the first {_MAX_LEGEND_LINES} of {len(labels)}")

"""Turns histories into panels: the lines of each pair of axes, as plain arrays.

Names, the x axis, units, and smoothing are resolved here; other modules only draw the panels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

import numpy as np

from metricbus._common.records import EPOCH_TIME
from metricbus._history.columns import Floats, Series
from metricbus._history.name_filter import no_match_message
from metricbus._history.plots.epoch_axis import epoch_positions
from metricbus._history.plots.smoothing import check_weight, smooth_values
from metricbus._history.series_source import SeriesSource

_MAX_DRAWABLE = 1e150  # larger values overflow in axes
_EPOCH_TIME = re.compile(rf"(rank\d+/)?{EPOCH_TIME}")
_TIME_UNITS = ((86400.0, 172800.0, "days"), (3600.0, 7200.0, "hours"), (60.0, 120.0, "minutes"))
"""Seconds per unit, and the smallest duration in seconds that is shown in it."""

_XPositions: TypeAlias = Callable[[SeriesSource, Series], Floats]


class PlotLine(NamedTuple):
    """One series of one run.

    `x` is ascending. In `y` and `smooth`, values that cannot be drawn are NaN. `smooth` is the same
    object as `y` if nothing is smoothed. `partial` has the points (x, y) of partial aggregates.
    """

    label: str
    x: Floats
    y: Floats
    smooth: Floats
    partial: list[tuple[float, float]]


class Panel(NamedTuple):
    """One pair of axes; `bars` selects bars instead of lines."""

    title: str
    x_label: str
    y_label: str
    lines: list[PlotLine]
    bars: bool = False


def match_names(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that equal or match one of the patterns, or all names without patterns.

    Raises `KeyError`, with similar names, for a pattern without a match.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise KeyError(no_match_message([pattern], names))
    return [name for name in names if not patterns or any(_matches(name, p) for p in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def series_names(histories: Iterable[SeriesSource]) -> list[str]:
    """Return the names of the scalar series of all runs, without repetitions."""
    return list(dict.fromkeys(name for history in histories for name in history.names()))


def run_labels(histories: Sequence[SeriesSource]) -> list[str]:
    """Return the name of each run, or its id if several runs have that name."""
    names = [history.run.name for history in histories]
    return [
        history.run.id if names.count(history.run.name) > 1 else history.run.name
        for history in histories
    ]


def make_panels(
    histories: Sequence[SeriesSource],
    names: Sequence[str],
    *,
    x: str = "step",
    smooth: float = 0.0,
    together: bool = False,
) -> list[Panel]:
    """Return one panel per name, with a line per run that has it; or, if `together`, one panel.

    `x` is `step`, `epoch`, `time` or the name of a series; `smooth` is a weight in [0, 1).
    Raises `ValueError` for another weight, and `KeyError` for an x axis that no run has.
    """
    check_weight(smooth)
    if x not in ("step", "epoch", "time"):
        match_names(series_names(histories), [x])
    axis = _XAxis(histories, x)
    runs = list(zip(run_labels(histories), histories, strict=True))
    if together:
        several = len(runs) > 1
        lines = [
            _line(f"{run}: {name}" if several else name, history, name, axis.positions, smooth)
            for name in names
            for run, history in runs
            if name in history.names()
        ]
        title = "" if several else runs[0][0]
        return [Panel(title, axis.label, names[0] if len(names) == 1 else "value", lines)]
    return [_panel(name, runs, axis, smooth) for name in names]


def _panel(
    name: str, runs: Sequence[tuple[str, SeriesSource]], axis: _XAxis, smooth: float
) -> Panel:
    runs = [(label, history) for label, history in runs if name in history.names()]
    if _EPOCH_TIME.fullmatch(name):
        lines = [_line(label, history, name, _epochs, 0.0) for label, history in runs]
        return Panel(name, "epoch", "seconds", lines, bars=True)
    lines = [_line(label, history, name, axis.positions, smooth) for label, history in runs]
    return Panel(name, axis.label, name, lines)


def _line(
    label: str, history: SeriesSource, name: str, x_positions: _XPositions, weight: float
) -> PlotLine:
    series = history.series(name)
    x, y = x_positions(history, series), series.value.astype(np.float64)
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(x[order])]
    x, y = x[order], nan_if_undrawable(y[order])
    smooth = smooth_values(y, weight)
    return PlotLine(label, x, y, smooth, _partial_points(history, name, x_positions))


def _partial_points(
    history: SeriesSource, name: str, x_positions: _XPositions
) -> list[tuple[float, float]]:
    rows = [row for row in history.partial if name in row.values]
    if not rows:
        return []
    partial = Series(
        step=np.array([row.step for row in rows], dtype=np.int64),
        epoch=np.array([row.epoch for row in rows], dtype=np.int64),
        time=np.array([row.time for row in rows], dtype=np.int64),
        value=np.array([row.values[name] for row in rows], dtype=np.float64),
    )
    x, y = x_positions(history, partial), nan_if_undrawable(partial.value)
    drawable = np.isfinite(x) & np.isfinite(y)
    return list(zip(x[drawable].tolist(), y[drawable].tolist(), strict=True))


def nan_if_undrawable(values: Floats) -> Floats:
    """Replace infinities and values too large to draw with NaN."""
    return np.where(np.abs(values) < _MAX_DRAWABLE, values, np.nan)


def _epochs(history: SeriesSource, series: Series) -> Floats:
    return series.epoch.astype(np.float64)


class _XAxis:
    """The x axis, with one unit for all runs."""

    def __init__(self, histories: Sequence[SeriesSource], x: str) -> None:
        self._x = x
        self.label = x
        self._unit_seconds = 1.0
        self._starts: dict[int, int] = {}
        if x == "time":
            self._starts = {id(history): _start_time(history) for history in histories}
            longest = max(
                (history.span[1] - self._starts[id(history)]) / 1e9 for history in histories
            )
            self._unit_seconds, unit = next(
                ((seconds, unit) for seconds, least, unit in _TIME_UNITS if longest >= least),
                (1.0, "seconds"),
            )
            self.label = f"time since the start ({unit})"

    def positions(self, history: SeriesSource, series: Series) -> Floats:
        """Return the x position of each value; NaN if it has none."""
        if self._x == "step":
            return series.step.astype(np.float64)
        if self._x == "epoch":
            return epoch_positions(series)
        if self._x == "time":
            return (series.time - self._starts[id(history)]) / 1e9 / self._unit_seconds
        return _values_at_steps(history, self._x, series)


def _start_time(history: SeriesSource) -> int:
    """Return the start of the run, or the time of its first row if that is unknown or later."""
    first, _ = history.span
    return min(history.run.started or first, first)


def _values_at_steps(history: SeriesSource, axis: str, series: Series) -> Floats:
    """Return the latest value of the series `axis` at each step of `series`, or NaN."""
    if axis not in history.names():
        return np.full(len(series), np.nan)
    axis_series = history.series(axis)
    order = np.argsort(axis_series.step, kind="stable")
    value = axis_series.value[order].astype(np.float64)
    index = np.searchsorted(axis_series.step[order], series.step, side="right") - 1
    return np.where(index >= 0, value[index], np.nan)

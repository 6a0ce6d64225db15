"""What is to be drawn: for each panel its lines, as plain columns of numbers.

All that asks for thought about the data is done here (which names, which x axis, units, smoothing),
so that those who draw only draw.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricbus._common.records import EPOCH_TIME
from metricbus._history.columns import Series
from metricbus._history.plots.epoch_axis import on_epochs
from metricbus._history.plots.smoothing import checked_weight, smoothed
from metricbus._history.series_source import SeriesSource

Floats = NDArray[np.float64]

_DRAWABLE = 1e150  # beyond it, the arithmetic of axes overflows
_EPOCH_TIME = re.compile(rf"(rank\d+/)?{EPOCH_TIME}")
_UNITS = ((86400.0, 172800.0, "days"), (3600.0, 7200.0, "hours"), (60.0, 120.0, "minutes"))


class Line(NamedTuple):
    """One series of one run. `x` ascends; what cannot be drawn is NaN in `y` and `smooth`.

    `smooth` is `y` itself where nothing is smoothed. `partial` are points (x, y) of windows that
    were open when their process died.
    """

    label: str
    x: Floats
    y: Floats
    smooth: Floats
    partial: list[tuple[float, float]]


class Panel(NamedTuple):
    """One pair of axes; `bars` are drawn as bars."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    bars: bool = False


def matching(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """The names that are, or match, one of the patterns; all of them if there are none.

    `KeyError` for a pattern that nothing matches, with near names.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            there = ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" * (len(names) > 20))
            raise KeyError(f"nothing logged is called {pattern!r}; {hint}there are: {there}")
    return [name for name in names if not patterns or any(_fits(name, glob) for glob in patterns)]


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def all_names(histories: Iterable[SeriesSource]) -> list[str]:
    """All names of numbers of all runs."""
    return list(dict.fromkeys(name for history in histories for name in history.names()))


def labels_of(histories: Sequence[SeriesSource]) -> list[str]:
    """The runs' names; their ids where a name comes again."""
    names = [history.run.name for history in histories]
    return [
        history.run.id if names.count(history.run.name) > 1 else history.run.name
        for history in histories
    ]


def panels_of(
    histories: Sequence[SeriesSource],
    names: Sequence[str],
    *,
    x: str = "step",
    smooth: float = 0.0,
    together: bool = False,
) -> list[Panel]:
    """One panel a name, with a line for each run that has it; or one panel for all, `together`.

    `ValueError` for a weight that is none, `KeyError` for an x axis that no run has.
    """
    checked_weight(smooth)
    if x not in ("step", "epoch", "time"):
        matching(all_names(histories), [x])
    axis = _Axis(histories, x)
    runs = list(zip(labels_of(histories), histories, strict=True))
    if together:
        several = len(runs) > 1
        lines = [
            _line(f"{label}: {name}" if several else name, history, name, axis.of, smooth)
            for name in names
            for label, history in runs
            if name in history.names()
        ]
        title = runs[0][0] if not several else ""
        return [Panel(title, axis.label, names[0] if len(names) == 1 else "value", lines)]
    return [_panel(name, runs, axis, smooth) for name in names]


def _panel(
    name: str, runs: Sequence[tuple[str, SeriesSource]], axis: _Axis, smooth: float
) -> Panel:
    having = [(label, history) for label, history in runs if name in history.names()]
    if _EPOCH_TIME.fullmatch(name):
        lines = [_line(label, history, name, _epochs, 0.0) for label, history in having]
        return Panel(name, "epoch", "seconds", lines, bars=True)
    lines = [_line(label, history, name, axis.of, smooth) for label, history in having]
    return Panel(name, axis.label, name, lines)


def _line(
    label: str,
    history: SeriesSource,
    name: str,
    x_of: Callable[[SeriesSource, Series], Floats],
    weight: float,
) -> Line:
    series = history.series(name)
    x, y = x_of(history, series), series.value.astype(np.float64)
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(x[order])]
    x, y = x[order], _drawable(y[order])
    return Line(label, x, y, smoothed(y, weight), _partial_points(history, name, x_of))


def _partial_points(
    history: SeriesSource, name: str, x_of: Callable[[SeriesSource, Series], Floats]
) -> list[tuple[float, float]]:
    rows = [row for row in history.partial if name in row.values]
    if not rows:
        return []
    value = np.array([row.values[name] for row in rows], dtype=np.float64)
    where = Series(
        step=np.array([row.step for row in rows], dtype=np.int64),
        epoch=np.array([row.epoch for row in rows], dtype=np.int64),
        time=np.array([row.time for row in rows], dtype=np.int64),
        value=value,
    )
    pairs = zip(x_of(history, where).tolist(), _drawable(value).tolist(), strict=True)
    return [(x, y) for x, y in pairs if np.isfinite(x) and np.isfinite(y)]


def _drawable(values: Floats) -> Floats:
    return np.where(np.abs(values) < _DRAWABLE, values, np.nan)


def _epochs(history: SeriesSource, series: Series) -> Floats:
    return series.epoch.astype(np.float64)


class _Axis:
    """Where values stand on the x axis that was asked for, the same for all runs."""

    def __init__(self, histories: Sequence[SeriesSource], x: str) -> None:
        self._x = x
        self.label = x
        self._unit = 1.0
        self._starts: dict[int, int] = {}
        if x == "time":
            self._starts = {id(history): _started(history) for history in histories}
            longest = max(_seconds(history, self._starts[id(history)]) for history in histories)
            self._unit, unit = next(
                ((unit, word) for unit, least, word in _UNITS if longest >= least), (1.0, "seconds")
            )
            self.label = f"time since the start ({unit})"

    def of(self, history: SeriesSource, series: Series) -> Floats:
        if self._x == "step":
            return series.step.astype(np.float64)
        if self._x == "epoch":
            return on_epochs(series)
        if self._x == "time":
            return (series.time - self._starts[id(history)]) / 1e9 / self._unit
        return _standing_on(history, self._x, series)


def _started(history: SeriesSource) -> int:
    """When the run began; of one that does not say so, or later than its rows, the first row."""
    first, _ = history.span
    return min(history.run.started or first, first)


def _seconds(history: SeriesSource, start: int) -> float:
    return (history.span[1] - start) / 1e9


def _standing_on(history: SeriesSource, axis: str, series: Series) -> Floats:
    """What the axis's series was at each value's step, or when last it came before; else NaN."""
    if axis not in history.names():
        return np.full(len(series), np.nan)
    known = history.series(axis)
    order = np.argsort(known.step, kind="stable")
    value = known.value[order].astype(np.float64)
    at = np.searchsorted(known.step[order], series.step, side="right") - 1
    return np.where(at >= 0, value[at], np.nan)

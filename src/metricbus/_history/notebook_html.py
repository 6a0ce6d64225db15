"""Notebook displays of a history and of a bus: HTML tables with an SVG sparkline per series.

No package is needed. All text from a run is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from metricbus._delivery.offsets_file import DeliveryProgress, load_progress
from metricbus._history.columns import Floats, Series
from metricbus._history.plots.downsample import downsample
from metricbus._history.plots.panels import nan_if_undrawable
from metricbus._history.plots.text_width import shorten
from metricbus._history.series_source import SeriesSource
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.run_summary import SeriesSummary, summarize_run
from metricbus.errors import JournalError

_MAX_ROWS = 30
_WIDTH, _HEIGHT = 120, 24  # pixels of a sparkline
_MAX_TEXT_COLUMNS = 80
_STYLE = "text-align:left;padding:2px 10px 2px 0;font-variant-numeric:tabular-nums"
_SERIES_HEADERS = ("name", "last", "min", "max", "count", "")
_SINK_HEADERS = ("sink", "delivered", "rejected", "filtered", "pending", "")


def history_html(history: SeriesSource) -> str:
    """Return the status, the series, and the stored counts of each sink of a run."""
    run = history.run
    facts = [run.status, f"{len(history):,} rows"]
    if n_media := len(history.media()):
        facts.append(f"{n_media:,} media")
    if history.damaged:
        facts.append(f"{history.damaged:,} damaged lines")
    names = history.names()
    rows = [_history_row(name, history.series(name)) for name in names[:_MAX_ROWS]]
    return _page(
        run,
        facts,
        _series_table(rows, len(names), "history.names()"),
        _sink_table(_stored_counts(history.folder / "offsets")),
    )


class _BusState(Protocol):
    """The part of a `MetricBus` that its display needs."""

    @property
    def dir(self) -> Path | None: ...
    @property
    def run(self) -> Run | None: ...
    @property
    def step(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    def stats(self) -> Any: ...


def bus_html(bus: _BusState) -> str:
    """Return the current step and epoch, the series in the journal, and the counts of each sink."""
    if bus.dir is None or bus.run is None:
        return f"<div>{escape(repr(bus))}</div>"
    report = bus.stats()
    facts = [f"step {bus.step:,}", f"epoch {bus.epoch:,}", f"{report.logged:,} values logged"]
    counts = (("dropped", report.dropped), ("waiting", report.waiting))
    facts += [f"{count:,} {label}" for label, count in counts if count]
    sinks = {
        name: (sink.delivered, sink.rejected, sink.filtered, sink.pending, sink.error or "")
        for name, sink in report.sinks.items()
    }
    try:
        summary = summarize_run(RunFolder(bus.dir))
    except (OSError, JournalError) as error:
        table = f"<div>{escape(str(error))}</div>"
    else:
        rows = list(map(_summary_row, islice(summary.series.values(), _MAX_ROWS)))
        table = _series_table(rows, len(summary.series), "metricbus.read(bus.dir).names()")
    return _page(bus.run, [bus.run.status, *facts], table, _sink_table(sinks))


def _page(run: Run, facts: Iterable[str], *tables: str) -> str:
    title = f"{run.name} ({run.id})" if run.name != run.id else run.id
    summary = escape(", ".join(facts))
    return f"<div><div><b>{escape(_shorten(title))}</b>: {summary}</div>{''.join(tables)}</div>"


def _series_table(rows: Sequence[Sequence[str]], count: int, all_names: str) -> str:
    """Return a table of the first of `count` series; the expression `all_names` lists all names."""
    n_more = count - len(rows)
    note = f"<div>and {n_more:,} more: {escape(all_names)}</div>" if n_more > 0 else ""
    return _table(_SERIES_HEADERS, rows) + note if rows else ""


def _history_row(name: str, series: Series) -> list[str]:
    value = series.value
    # NaN can be the last value, but is neither the minimum nor the maximum. The comparison also
    # finds NaN in object arrays, which np.isnan does not accept.
    numbers = value[value == value]  # noqa: PLR0124
    extremes = (numbers.min(), numbers.max()) if len(numbers) else (math.nan, math.nan)
    return _series_row(name, (value[-1], *extremes, len(value)), svg_sparkline(series))


def _summary_row(series: SeriesSummary) -> list[str]:
    low = math.nan if series.min is None else series.min
    high = math.nan if series.max is None else series.max
    pairs = [pair or (math.nan, math.nan) for pair in series.course.extremes()]
    y = nan_if_undrawable(np.array(pairs).reshape(-1))
    svg = _svg(np.repeat(np.arange(len(pairs), dtype=np.float64), 2), y)
    return _series_row(series.name, (series.last, low, high, series.count), svg)


def _series_row(name: str, numbers: Iterable[object], svg: str) -> list[str]:
    return [*map(escape, (_shorten(name), *map(_format, numbers))), svg]


def svg_sparkline(series: Series) -> str:
    """Return a small line plot as SVG; empty if no value can be drawn.

    Values that are not finite are gaps in the line.
    """
    order = np.argsort(series.step, kind="stable")
    x = series.step[order].astype(np.float64)
    y = nan_if_undrawable(series.value[order].astype(np.float64))
    kept = downsample(x, y, _WIDTH // 2)
    return _svg(x[kept], y[kept])


def _svg(x: Floats, y: Floats) -> str:
    if np.isnan(y).all():
        return ""
    x, y = _scale(x, _WIDTH), _HEIGHT - _scale(y, _HEIGHT)
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="-2 -2 {_WIDTH + 4} {_HEIGHT + 4}" '
        f'fill="none" stroke="#1f77b4" stroke-width="1.5" stroke-linecap="round">'
        f'<path d="{_svg_path(x, y)}"/></svg>'
    )


def _scale(values: Floats, size: int) -> Floats:
    low, high = np.nanmin(values), np.nanmax(values)
    if high == low:
        return np.where(np.isnan(values), np.nan, size / 2)
    scaled: Floats = (values - low) / (high - low) * size
    return scaled


def _svg_path(x: Floats, y: Floats) -> str:
    """Return SVG path commands that draw lines between points and lift the pen at gaps."""
    commands = []
    is_pen_down = False
    for x_value, y_value in zip(x.tolist(), y.tolist(), strict=True):
        if math.isnan(y_value):
            is_pen_down = False
            continue
        commands.append(f"{'L' if is_pen_down else 'M'}{x_value:.4g} {y_value:.4g}")
        if not is_pen_down:
            # A line of length zero shows a point between two gaps as a dot.
            commands.append("h0")
        is_pen_down = True
    return "".join(commands)


def _stored_counts(offsets: Path) -> dict[str, tuple[object, ...]]:
    """Return the counts of each sink that has stored progress."""
    all_progress = [
        load_progress(path, DeliveryProgress(sink=path.stem)) for path in offsets.glob("*.json")
    ]
    return {
        progress.sink: (progress.delivered, progress.rejected, progress.filtered)
        for progress in sorted(all_progress, key=lambda progress: progress.sink)
    }


def _sink_table(counts: Mapping[str, Sequence[object]]) -> str:
    rows = [
        [escape(_shorten(sink)), *(escape(_format(count)) for count in row)]
        for sink, row in counts.items()
    ]
    return _table(_SINK_HEADERS[: len(rows[0])], rows) if rows else ""


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; the cells of `rows` are HTML already."""
    head = "".join(f'<th style="{_STYLE}">{escape(text)}</th>' for text in headers)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_STYLE}">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _format(value: object) -> str:
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.5g}"
    return _shorten(str(value))


def _shorten(text: str) -> str:
    return shorten(text, _MAX_TEXT_COLUMNS)

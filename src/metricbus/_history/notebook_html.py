"""What a notebook shows of a history and of a bus: a table with a small plot a series.

It is HTML and SVG made by hand, so it needs no package. Everything that a run says of itself is
data, and escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from metricbus._delivery.cursor import DeliveryProgress, load_progress
from metricbus._history.columns import Series
from metricbus._history.plots.downsample import Floats, thinned
from metricbus._history.plots.text_width import shown
from metricbus._history.series_source import SeriesSource
from metricbus._journal.run import Run
from metricbus.errors import JournalError

_MOST_ROWS = 30
_LARGEST = 64 << 20  # bytes of a live run's journal that are read for a display
_WIDTH, _HEIGHT = 120, 24  # pixels of a small plot
_LONGEST = 80  # characters of a name that are shown
_STYLE = "text-align:left;padding:2px 10px 2px 0;font-variant-numeric:tabular-nums"
_HEADS = ("name", "last", "min", "max", "count", "")


def html_of_history(history: SeriesSource) -> str:
    """The run's status, its series, and what its sinks have."""
    run = history.run
    facts = [run.status, f"{len(history):,} rows"]
    if n_media := len(history.media()):
        facts.append(f"{n_media:,} media")
    if history.damaged:
        facts.append(f"{history.damaged:,} damaged lines")
    return _page(
        f"{run.name} ({run.id})" if run.name != run.id else run.id,
        facts,
        _table_of_series(history, "history.names()"),
        _table_of_sinks(_delivered(history.folder / "offsets")),
    )


ReadRun: TypeAlias = Callable[[Path], SeriesSource]


class BusState(Protocol):
    """What the display of a bus needs: `MetricBus` satisfies it."""

    @property
    def folder(self) -> Path | None:
        """The run's folder; None if the bus has no run."""

    @property
    def run(self) -> Run | None:
        """The run; None before the bus opens one."""

    @property
    def step(self) -> int:
        """The current step."""

    @property
    def epoch(self) -> int:
        """The current epoch."""

    def stats(self) -> Any:
        """The counts, as a `Report`."""


def html_of_bus(bus: BusState, read: ReadRun) -> str:
    """Current step and epoch, the series written to the journal so far, and each sink's counts."""
    if bus.folder is None or bus.run is None:
        return f"<div>{escape(repr(bus))}</div>"
    report = bus.stats()
    facts = [f"step {bus.step:,}", f"epoch {bus.epoch:,}", f"{report.logged:,} values logged"]
    facts += [f"{n:,} {what}" for what, n in _not_zero(report)]
    counts = {
        name: (sink.delivered, sink.rejected, sink.filtered, sink.pending, sink.error or "")
        for name, sink in report.sinks.items()
    }
    series, status = _series_of_run(bus.folder, bus.run.status, read)
    title = f"{bus.run.name} ({bus.run.id})" if bus.run.name != bus.run.id else bus.run.id
    return _page(title, [status, *facts], series, _table_of_sinks(counts))


def _not_zero(report: Any) -> list[tuple[str, int]]:
    counts = [("dropped", report.dropped), ("waiting", report.waiting)]
    return [(what, n) for what, n in counts if n]


def _series_of_run(folder: Path, status: str, read: ReadRun) -> tuple[str, str]:
    """The table of series and the status, from the run's folder."""
    try:
        size = sum(path.stat().st_size for path in (folder / "journal").iterdir())
        if size > _LARGEST:
            note = f"The journal has {size >> 20:,} MiB; metricbus.read(bus.folder) reads it."
            return f"<div>{escape(note)}</div>", status
        history = read(folder)
    except (OSError, JournalError) as error:
        return f"<div>{escape(str(error))}</div>", status
    return _table_of_series(history, "metricbus.read(bus.folder).names()"), history.run.status


def _page(title: str, facts: Iterable[str], *tables: str) -> str:
    said = escape(", ".join(facts))
    return f"<div><div><b>{escape(_cut(title))}</b>: {said}</div>{''.join(tables)}</div>"


class _Summary(NamedTuple):
    last: object
    least: object
    greatest: object
    n: int


def _table_of_series(history: SeriesSource, all_names: str) -> str:
    names = history.names()
    rows = []
    for name in names[:_MOST_ROWS]:
        series = history.series(name)
        summary = _summary_of(series)
        cells = [_cut(name), *map(_number, summary[:3]), f"{summary.n:,}"]
        rows.append([*map(escape, cells), small_plot(series)])
    more = len(names) - _MOST_ROWS
    note = f"<div>and {more:,} more: {escape(all_names)}</div>" if more > 0 else ""
    return _table(_HEADS, rows) + note if rows else ""


def _summary_of(series: Series) -> _Summary:
    """NaN counts for neither the least nor the greatest value, but may be the last."""
    value = series.value
    there = value[value == value]  # noqa: PLR0124 - NaN alone is not itself, also among objects
    least, greatest = (there.min(), there.max()) if len(there) else (math.nan, math.nan)
    return _Summary(value[-1], least, greatest, len(value))


def small_plot(series: Series) -> str:
    """An SVG of a few hundred bytes; gaps where values are not finite."""
    order = np.argsort(series.step, kind="stable")
    x, y = series.step[order].astype(np.float64), series.value[order].astype(np.float64)
    y = np.where(np.abs(y) < 1e150, y, np.nan)  # what lies beyond cannot be scaled
    if np.isnan(y).all():
        return ""
    kept = thinned(x, y, _WIDTH // 2)
    x, y = _scaled(x[kept], _WIDTH), _HEIGHT - _scaled(y[kept], _HEIGHT)
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="-2 -2 {_WIDTH + 4} {_HEIGHT + 4}" '
        f'fill="none" stroke="#1f77b4" stroke-width="1.5" stroke-linecap="round">'
        f'<path d="{_path(x, y)}"/></svg>'
    )


def _scaled(values: Floats, size: int) -> Floats:
    least, greatest = np.nanmin(values), np.nanmax(values)
    if greatest == least:
        return np.where(np.isnan(values), np.nan, size / 2)
    scaled: Floats = (values - least) / (greatest - least) * size
    return scaled


def _path(x: Floats, y: Floats) -> str:
    """Moves to the first point after a gap, and draws to the others; a lone point is a dot."""
    steps = []
    pen_is_down = False
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if math.isnan(down):
            pen_is_down = False
            continue
        steps.append(f"{'L' if pen_is_down else 'M'}{across:.4g} {down:.4g}")
        if not pen_is_down:
            steps.append("h0")
        pen_is_down = True
    return "".join(steps)


def _delivered(offsets: Path) -> dict[str, tuple[object, ...]]:
    """What each sink's progress says; one that was never delivered to is not there."""
    all_progress = [
        load_progress(path, DeliveryProgress(sink=path.stem)) for path in offsets.glob("*.json")
    ]
    return {
        progress.sink: (progress.delivered, progress.rejected, progress.filtered)
        for progress in sorted(all_progress, key=lambda progress: progress.sink)
    }


def _table_of_sinks(counts: Mapping[str, Sequence[object]]) -> str:
    if not counts:
        return ""
    heads = ("sink", "delivered", "rejected", "filtered", "pending", "")
    rows = [
        [escape(_cut(sink)), *(escape(_number(count)) for count in row)]
        for sink, row in counts.items()
    ]
    return _table(heads[: len(rows[0])], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f'<th style="{_STYLE}">{escape(text)}</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_STYLE}">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: object) -> str:
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.5g}"
    return _cut(str(value))


def _cut(text: str) -> str:
    return shown(text, _LONGEST)

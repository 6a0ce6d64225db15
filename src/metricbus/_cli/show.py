"""The command `metricbus show`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from metricbus._cli.console import console, print_json
from metricbus._cli.deliver import columns_of_counts
from metricbus._cli.escaping import path_text, printable
from metricbus._cli.format import STATUS_STYLES, about, moment, number, span, sparkline
from metricbus._cli.run_lookup import find_run
from metricbus._cli.run_reader import (
    Reading,
    config_of,
    dropped_in_words,
    fail_for_name,
    pending,
    read_run,
    seconds_of,
    why,
)
from metricbus._cli.table import Column, print_table
from metricbus._delivery.report import SinkCounts
from metricbus._history.run_summary import MediumSummary, RunSummary
from metricbus._history.series_summary import SeriesSummary
from metricbus._journal.run import Run
from metricbus.sinks.media_text import kind_of

_WIDE_TREND, _NARROW_TREND, _NARROW = 32, 10, 80


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run: its folder, id or name.")],
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only series and media of this name.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show a run: its config, every series, media, and what each sink has.

    Reads the whole journal, of a live run up to now. NaN are counted apart:
    min, max and mean are those of the other values.

    Example: metricbus show runs/digits-20260131-142530-k3x9a --name 'val/*'
    """
    read = read_run(find_run(run))
    series = list(read.summary.series.values())
    media = read.summary.media
    if name is not None:
        series = [one for one in series if fnmatchcase(one.name, name)]
        media = [one for one in media if fnmatchcase(one.name, name)]
        if not series and not media:
            fail_for_name(name, [*read.summary.series, *(one.name for one in read.summary.media)])
    if json:
        print_json(_as_json(read, series, media))
        return
    out = console()
    _print_run(out, read)
    _print_config(out, read.run)
    _print_series(out, series)
    _print_media(out, media)
    _print_sinks(out, read)


def _print_run(out: Console, read: Reading) -> None:
    run = read.run
    _print(out, Text(printable(run.name), style="bold"), Text(f"  {printable(run.id)}"))
    _print(out, Text(read.status, style=STATUS_STYLES[read.status]), Text(_course(read)))
    facts = {
        "project": run.project,
        "group": run.group,
        "tags": ", ".join(run.tags),
        "notes": run.notes,
        "process": f"{run.pid} on {run.host}" if run.host else "",
        "folder": path_text(read.folder.path),
    }
    facts |= _oddities(read.summary) | {"values dropped": dropped_in_words(read)}
    for title, text in facts.items():
        if text:
            show_line = _print_whole if title == "folder" else _print
            show_line(out, Text(f"{title}: ", style="dim"), Text(printable(text)))


def _oddities(summary: RunSummary) -> dict[str, str]:
    """What not every journal has."""
    counted = (
        ("values left out", summary.superseded, "a rewind went back before them"),
        ("values still open", summary.partial_rows, "in reductions that have not ended"),
        ("lines damaged", summary.damaged, "they cannot be read"),
        ("bytes torn", summary.torn, "at the ends of segments, after the last whole line"),
    )
    return {title: f"{count:,} ({text})" for title, count, text in counted if count}


def _course(read: Reading) -> str:
    run, summary = read.run, read.summary
    parts = [f"begun {moment(run.started)}"] if run.started else []
    seconds = seconds_of(read)
    parts += [f"{span(seconds)} long"] if seconds is not None else []
    parts += [f"step {summary.last_step:,}"] if summary.last_step is not None else []
    parts += [f"{summary.epochs} epochs"] if summary.epochs > 1 else []
    parts += [f"{summary.values:,} values in {summary.rows:,} rows"]
    parts += [f"attempt {run.attempt}"] if run.attempt > 1 else []
    return "; ".join(["", *parts])


def _print(out: Console, *texts: Text) -> None:
    out.print(Text.assemble(*texts), overflow="fold")


def _print_whole(out: Console, *texts: Text) -> None:
    """A line with a path or a command, which people copy: without newlines in it."""
    out.print(Text.assemble(*texts), soft_wrap=True)


def _print_config(out: Console, run: Run) -> None:
    config = config_of(run)
    if config:
        keys, values = list(config), [printable(value) for value in config.values()]
        out.print()
        columns = [Column("config", keys, 2, folded=True), Column("", values, 1, folded=True)]
        print_table(out, columns)


def _print_series(out: Console, series: Sequence[SeriesSummary]) -> None:
    if not series:
        return
    wide = _WIDE_TREND if out.width > _NARROW else _NARROW_TREND
    nans = [f"{one.nan:,}" if one.nan else "" for one in series]
    columns = [
        Column("series", [one.name for one in series], 9, folded=True),
        Column("count", [f"{one.count:,}" for one in series], 2, right=True),
        Column("NaN", nans, 4, right=True, styles=["red"] * len(nans)),
        Column("last", [number(one.last) for one in series], 8, right=True),
        Column("min", [number(one.min) for one in series], 6, right=True),
        Column("max", [number(one.max) for one in series], 5, right=True),
        Column("mean", [number(one.mean) for one in series], 3, right=True),
        Column("steps", [f"{one.first_step}-{one.last_step}" for one in series], 1, right=True),
        Column("trend", [_trend(one, wide) for one in series], 7),
    ]
    out.print()
    print_table(out, columns)


def _trend(one: SeriesSummary, width: int) -> str:
    return sparkline(one.curve.low, one.curve.high, width)


def _print_media(out: Console, media: Sequence[MediumSummary]) -> None:
    if not media:
        return
    rows = [f"{one.rows:,}" if one.rows else "" for one in media]
    columns = [
        Column("media", [one.name for one in media], 9, folded=True),
        Column("kind", [kind_of(one.newest) for one in media], 8),
        Column("count", [f"{one.count:,}" for one in media], 6, right=True),
        Column("rows", rows, 4, right=True),
        Column("step", [str(one.last_step) for one in media], 3, right=True),
        Column("newest", [about(one.newest) for one in media], 5, folded=True),
    ]
    out.print()
    print_table(out, columns)


def _print_sinks(out: Console, read: Reading) -> None:
    sinks = read.sinks
    if not sinks:
        return
    counts = [
        SinkCounts(
            delivered=sink.delivered,
            rejected=sink.rejected,
            filtered=sink.filtered,
            pending=pending(read, sink),
        )
        for sink in sinks
    ]
    out.print()
    print_table(out, columns_of_counts([sink.sink for sink in sinks], counts))
    for sink in sinks:
        for text in (why(read, sink), sink.where, sink.command):
            if text:
                title = Text(f"{printable(sink.sink)}: ", style="dim")
                _print_whole(out, title, Text(printable(text)))


def _as_json(
    read: Reading, series: Sequence[SeriesSummary], media: Sequence[MediumSummary]
) -> dict[str, Any]:
    run, summary = read.run, read.summary
    about_run = msgspec.structs.asdict(run) | {"status": read.status, "sinks": run.sinks}
    counts = (
        "rows",
        "values",
        "superseded",
        "partial_rows",
        "last_step",
        "epochs",
        "damaged",
        "torn",
    )
    return {
        "folder": path_text(read.folder.path),
        "run": about_run,
        **{name: getattr(summary, name) for name in counts},
        "dropped": summary.dropped,
        "series": [_without(one, "curve") for one in series],
        "media": [
            _without(one, "newest") | {"kind": kind_of(one.newest), "about": about(one.newest)}
            for one in media
        ],
        "sinks": [
            msgspec.structs.asdict(sink) | {"pending": pending(read, sink), "why": why(read, sink)}
            for sink in read.sinks
        ],
    }


def _without(struct: msgspec.Struct, field: str) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(struct).items() if name != field}

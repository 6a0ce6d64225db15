"""The command `metricbus show`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from metricbus._cli.console import console, fail, print_json
from metricbus._cli.deliver import count_columns
from metricbus._cli.escaping import path_text
from metricbus._cli.format import (
    STATUS_STYLES,
    describe_medium,
    format_duration,
    format_number,
    format_time,
    sparkline,
)
from metricbus._cli.run_lookup import find_run
from metricbus._cli.run_reader import RunDetails, read_run
from metricbus._cli.table import Column, print_table
from metricbus._delivery.report import SinkCounts
from metricbus._history.name_filter import no_match_message
from metricbus._journal.run_summary import MediumSummary, RunSummary, SeriesSummary
from metricbus.sinks.media_text import kind_of, printable

_NARROW = 80  # columns
_WIDE_TREND, _NARROW_TREND = 32, 10


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run: its folder, id or name.")],
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only series and media whose name matches.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run: its config and summary, all series and media, and the delivery to each sink.

    NaN values are counted separately and do not affect min, max and mean.

    Example: metricbus show runs/digits-20260131-142530-k3x9a --name 'val/*'
    """
    details = read_run(find_run(run))
    series = list(details.summary.series.values())
    media = details.summary.media
    if name is not None:
        names = [*details.summary.series, *(item.name for item in media)]
        series = [item for item in series if fnmatchcase(item.name, name)]
        media = [item for item in media if fnmatchcase(item.name, name)]
        if not series and not media:
            fail(no_match_message([name], list(dict.fromkeys(names))))
    if json:
        print_json(_details_json(details, series, media))
        return
    out = console()
    _print_overview(out, details)
    _print_pairs(out, "config", details.config, printable)
    _print_pairs(out, "summary", details.run.summary, format_number)
    _print_series(out, series)
    _print_media(out, media)
    _print_sinks(out, details)


def _print_overview(out: Console, details: RunDetails) -> None:
    run = details.run
    _print(out, Text(printable(run.name), style="bold"), Text(f"  {printable(run.id)}"))
    status = Text(details.status, style=STATUS_STYLES[details.status])
    _print(out, status, Text(_progress(details)))
    facts = {
        "project": run.project,
        "group": run.group,
        "tags": ", ".join(run.tags),
        "notes": run.notes,
        "process": f"{run.pid} on {run.host}" if run.host else "",
        "folder": path_text(details.folder.path),
    }
    facts |= _irregularities(details.summary) | {"values dropped": details.describe_dropped()}
    for title, text in facts.items():
        if text:
            label = Text(f"{title}: ", style="dim")
            _print(out, label, Text(printable(text)), wrap=title != "folder")


def _irregularities(summary: RunSummary) -> dict[str, str]:
    counts = (
        ("values superseded", summary.superseded, "by a rewind"),
        ("values pending", summary.partial_rows, "in reductions that have not finished"),
        ("lines damaged", summary.damaged, "they cannot be read"),
        ("bytes torn", summary.torn, "after the last complete line of a segment"),
    )
    return {title: f"{count:,} ({text})" for title, count, text in counts if count}


def _progress(details: RunDetails) -> str:
    run, summary = details.run, details.summary
    seconds = details.seconds
    parts = [f"started {format_time(run.started)}"] if run.started else []
    parts += [f"duration {format_duration(seconds)}"] if seconds is not None else []
    parts += [f"step {summary.last_step:,}"] if summary.last_step is not None else []
    parts += [f"{summary.epochs} epochs"] if summary.epochs > 1 else []
    parts += [f"{summary.values:,} values in {summary.rows:,} rows"]
    parts += [f"attempt {run.attempt}"] if run.attempt > 1 else []
    return "; ".join(["", *parts])


def _print(out: Console, *texts: Text, wrap: bool = True) -> None:
    """Print a line. Without `wrap`, a path or command in it can be copied without newlines."""
    out.print(Text.assemble(*texts), overflow="fold" if wrap else None, soft_wrap=not wrap)


def _print_section(out: Console, columns: Sequence[Column]) -> None:
    if columns[0].cells:
        out.print()
        print_table(out, columns)


def _print_pairs(
    out: Console, title: str, pairs: Mapping[str, Any], to_text: Callable[[Any], str]
) -> None:
    keys = Column(title, list(pairs), 2, wrapped=True)
    _print_section(out, [keys, Column("", list(map(to_text, pairs.values())), 1, wrapped=True)])


def _print_series(out: Console, series: Sequence[SeriesSummary]) -> None:
    width = _WIDE_TREND if out.width > _NARROW else _NARROW_TREND
    nans = [f"{item.nan:,}" if item.nan else "" for item in series]
    trends = [sparkline(item.course.extremes(), width) for item in series]
    columns = [
        Column("series", [item.name for item in series], 9, wrapped=True),
        Column("count", [f"{item.count:,}" for item in series], 2, right=True),
        Column("NaN", nans, 4, right=True, styles=["red"] * len(nans)),
        Column("last", [format_number(item.last) for item in series], 8, right=True),
        Column("min", [format_number(item.min) for item in series], 6, right=True),
        Column("max", [format_number(item.max) for item in series], 5, right=True),
        Column("mean", [format_number(item.mean) for item in series], 3, right=True),
        Column("steps", [f"{item.first_step}-{item.last_step}" for item in series], 1, right=True),
        Column("trend", trends, 7),
    ]
    _print_section(out, columns)


def _print_media(out: Console, media: Sequence[MediumSummary]) -> None:
    rows = [f"{item.rows:,}" if item.rows else "" for item in media]
    columns = [
        Column("media", [item.name for item in media], 9, wrapped=True),
        Column("kind", [kind_of(item.newest) for item in media], 8),
        Column("count", [f"{item.count:,}" for item in media], 6, right=True),
        Column("rows", rows, 4, right=True),
        Column("step", [str(item.last_step) for item in media], 3, right=True),
        Column("newest", [describe_medium(item.newest) for item in media], 5, wrapped=True),
    ]
    _print_section(out, columns)


def _print_sinks(out: Console, details: RunDetails) -> None:
    sinks = details.sinks
    counts = [
        SinkCounts(
            delivered=sink.delivered,
            rejected=sink.rejected,
            filtered=sink.filtered,
            pending=details.pending(sink),
        )
        for sink in sinks
    ]
    _print_section(out, count_columns([sink.sink for sink in sinks], counts))
    for sink in sinks:
        for text in (details.explain(sink), sink.where, sink.command):
            if text:
                label = Text(f"{printable(sink.sink)}: ", style="dim")
                _print(out, label, Text(printable(text)), wrap=False)


def _details_json(
    details: RunDetails, series: Sequence[SeriesSummary], media: Sequence[MediumSummary]
) -> dict[str, Any]:
    run, summary = details.run, details.summary
    return {
        "folder": path_text(details.folder.path),
        "run": msgspec.structs.asdict(run) | {"status": details.status, "sinks": run.sinks},
        "rows": summary.rows,
        "values": summary.values,
        "superseded": summary.superseded,
        "left_open": summary.partial_rows,
        "last_step": summary.last_step,
        "epochs": summary.epochs,
        "damaged": summary.damaged,
        "torn": summary.torn,
        "dropped": summary.dropped,
        "series": [_without(item, "course") for item in series],
        "media": [
            _without(item, "newest")
            | {"kind": kind_of(item.newest), "about": describe_medium(item.newest)}
            for item in media
        ],
        "sinks": [
            msgspec.structs.asdict(sink)
            | {"pending": details.pending(sink), "why": details.explain(sink)}
            for sink in details.sinks
        ],
    }


def _without(struct: msgspec.Struct, field: str) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(struct).items() if name != field}

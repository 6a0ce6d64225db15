"""The command `metricbus deliver`, and the delivery counts that it and the demo print."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

import metricbus
from metricbus._cli.console import console, print_json, report_errors
from metricbus._cli.escaping import path_text
from metricbus._cli.run_lookup import find_run
from metricbus._cli.table import Column, print_table
from metricbus._delivery.report import Report, SinkCounts
from metricbus.sinks.media_text import printable


def deliver(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs: folders, ids or names.")
    ],
    sinks: Annotated[
        str | None, typer.Option(help="Sink URLs, separated by commas. Default: the run's own.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep delivering until a live run has ended.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Give up after this many seconds. Default: never.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print each run's counts as JSON.")] = False,
) -> None:
    """Deliver logged values to sinks: during a run, later, or after a crash.

    Values that a sink has already received are not sent again.

    Example: metricbus deliver runs/digits-20260131-142530-k3x9a --sinks wandb://team/digits
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # The sink `logging` logs metrics at this level.
    logging.getLogger("metricbus").setLevel(logging.INFO)
    is_complete, results = True, []
    for folder in [find_run(run) for run in runs]:
        with report_errors(folder.path):
            counts = metricbus.deliver(folder.path, sinks, follow=follow, timeout=timeout)
        results.append({"folder": path_text(folder.path), "sinks": counts})
        if not json:
            print_counts(counts)
        is_complete &= not any(sink.pending or sink.rejected for sink in counts.values())
    if json:
        print_json(results)
    if not is_complete:
        raise typer.Exit(1)


def print_report(report: Report, folder: Path) -> None:
    """Print how many values a run has logged, and where they were written to."""
    details = f", {report.dropped:,} dropped" if report.dropped else ""
    if report.reduced:
        details = f", {report.reduced:,} of them reduced to {report.derived:,}{details}"
    print(f"Logged {report.logged:,} values{details}. Written to:")
    print(f"  journal: {folder / 'journal'}")
    print_counts(report.sinks)


def print_counts(sinks: Mapping[str, SinkCounts]) -> None:
    """Print each sink's counts, the location of its data, and its last error."""
    for name, sink in sinks.items():
        print(printable(f"  {name}: {sink.where}"))
        if sink.command:
            print(printable(f"    {sink.command}"))
    print_table(console(), count_columns(list(sinks), list(sinks.values())))
    for name, sink in sinks.items():
        if sink.error:
            print(printable(f"{name}: {sink.error}"))


def count_columns(names: Sequence[str], sinks: Sequence[SinkCounts]) -> list[Column]:
    """Return table columns with one row for each sink; `pending` is left out last."""
    return [
        Column("sink", names, 9, wrapped=True),
        Column("delivered", [f"{sink.delivered:,}" for sink in sinks], 5, right=True),
        Column("rejected", [f"{sink.rejected:,}" for sink in sinks], 6, right=True),
        Column("filtered", [f"{sink.filtered:,}" for sink in sinks], 3, right=True),
        Column("pending", [f"{sink.pending:,}" for sink in sinks], 7, right=True),
    ]

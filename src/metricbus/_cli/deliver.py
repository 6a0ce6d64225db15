"""The command `metricbus deliver`, and the counts with which it and the demo end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

import metricbus
from metricbus._cli.console import console, failing, print_json
from metricbus._cli.escaping import path_text, printable
from metricbus._cli.run_lookup import find_run
from metricbus._cli.table import Column, print_table
from metricbus._delivery.report import Report, SinkCounts


def deliver(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs: folders, ids or names.")
    ],
    sinks: Annotated[
        str | None, typer.Option(help="Sink URLs, separated by commas; else the run's own.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until a run that lives has ended.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Give up after so many seconds; else never.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="The counts as JSON, a run after another.")
    ] = False,
) -> None:
    """Bring what runs have logged to sinks: now, later, or after a crash. Nothing comes twice.

    Example: metricbus deliver runs/digits-20260131-142530-k3x9a --sinks wandb://team/digits
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("metricbus").setLevel(logging.INFO)  # for the sink `logging`
    complete, told = True, []
    for folder in [find_run(run) for run in runs]:
        with failing(folder.path):
            counts = metricbus.deliver(folder.path, sinks, follow=follow, timeout=timeout)
        told.append({"folder": path_text(folder.path), "sinks": counts})
        if not json:
            print_counts(counts)
        complete &= not any(sink.pending or sink.rejected for sink in counts.values())
    if json:
        print_json(told)
    if not complete:
        raise typer.Exit(1)


def print_report(report: Report, folder: Path) -> None:
    """What became of a run's values, and where they are."""
    reduced = (
        f"{report.reduced:,} of them reduced to {report.derived:,}, " if report.reduced else ""
    )
    print(f"{report.logged:,} values logged, {reduced}{report.dropped:,} dropped. Where they are:")
    print(f"  journal: {folder / 'journal'}")
    print_counts(report.sinks)


def print_counts(sinks: Mapping[str, SinkCounts]) -> None:
    """What each sink has, where that is, and what went wrong."""
    for name, sink in sinks.items():
        print(printable(f"  {name}: {sink.where}"))
        if sink.command:
            print(printable(f"    {sink.command}"))
    print_table(console(), columns_of_counts(list(sinks), list(sinks.values())))
    for name, sink in sinks.items():
        if sink.error:
            print(printable(f"{name}: {sink.error}"))


def columns_of_counts(names: Sequence[str], sinks: Sequence[SinkCounts]) -> list[Column]:
    """A row a sink; the last to go is what tells whether all is well."""
    return [
        Column("sink", names, 9, folded=True),
        Column("delivered", [f"{sink.delivered:,}" for sink in sinks], 5, right=True),
        Column("rejected", [f"{sink.rejected:,}" for sink in sinks], 6, right=True),
        Column("filtered", [f"{sink.filtered:,}" for sink in sinks], 3, right=True),
        Column("pending", [f"{sink.pending:,}" for sink in sinks], 7, right=True),
    ]

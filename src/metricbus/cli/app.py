"""The commands, and how they speak of what went wrong."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import metricbus
from metricbus import __version__
from metricbus.cli.compare import compare
from metricbus.cli.export import export
from metricbus.cli.importing import import_
from metricbus.cli.ls import ls
from metricbus.cli.plot import plot
from metricbus.cli.show import show
from metricbus.cli.tail import tail
from metricbus.cli.terminal import console, fail
from metricbus.config import Settings, declared, reference, resolve
from metricbus.errors import ConfigError, JournalError
from metricbus.report import Report, SinkCounts
from metricbus.sinks import find_sink, make_sink, sink_names
from metricbus.urls import parse_sinks

app = typer.Typer(
    name="metricbus",
    help="Log metrics once into a small durable journal; deliver them to any backend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(ls)
app.command()(show)
app.command()(tail)
app.command()(plot)
app.command()(compare)
app.command()(export)
app.command("import")(import_)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    sinks: Annotated[
        str, typer.Option(help="Sink URLs, separated by commas.")
    ] = "logging,csv,tensorboard,wandb,mlflow",
    dir: Annotated[Path, typer.Option(help="The folder for the run's folder.")] = Path("runs"),
    epochs: Annotated[int, typer.Option(min=1, help="How often to see all digits.")] = 5,
) -> None:
    """Train a small network on real handwritten digits and watch its metrics arrive.

    Example: metricbus demo --epochs 3 --sinks csv,tensorboard
    """
    needed = {"torch": "torch", "sklearn": "scikit-learn", "tqdm": "tqdm"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        fail(f"the demo needs {', '.join(missing)}: pip install 'metricbus[demo]'")
    from metricbus.cli.demo import run_demo

    try:
        report, folder = run_demo(sinks=sinks, dir=dir, epochs=epochs)
    except ConfigError as error:
        fail(str(error))
    _print_report(report, folder)
    if not report.complete:
        raise typer.Exit(1)


@app.command()
def doctor(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference of all settings instead.")
    ] = False,
) -> None:
    """Print what settings are in force, where each comes from, and what is wrong with them.

    Example: METRICBUS_SINKS=csv metricbus doctor
    """
    if markdown:
        print(reference(), end="")
        return
    try:
        settings, in_force = resolve({})
    except ConfigError as error:
        fail(str(error))
    table = Table("variable", "from", "meaning")
    table.add_column("in force", overflow="fold")
    for setting, value, source in in_force:
        shown = "" if value is None else str(value)
        style = "bold" if source == "environment" else ""
        table.add_row(setting.variable, source, setting.doc, shown, style=style)
    console().print(table)
    problems = _problems(settings)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)


@app.command()
def sinks() -> None:
    """List the sinks that a URL may name, and what is missing to use them.

    Example: metricbus sinks
    """
    table = Table("sink", "ready", "what it is")
    for name in sink_names():
        try:
            doc = (find_sink(name).__doc__ or "").strip().splitlines()
            table.add_row(name, "yes", doc[0] if doc else "")
        except ConfigError as error:
            table.add_row(name, "no", str(error))
    console().print(table)


@app.command()
def deliver(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    sinks: Annotated[
        str | None, typer.Option(help="Sink URLs, separated by commas; else the run's own.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until a run that lives has ended.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Give up after so many seconds; else never.")
    ] = None,
) -> None:
    """Bring what runs have logged to sinks: now, later, or after a crash. Nothing comes twice.

    Example: metricbus deliver runs/digits-20260131-142530-k3x9a --sinks wandb://team/digits
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("metricbus").setLevel(logging.INFO)  # for the sink `logging`
    complete = True
    for run in runs:
        try:
            counts = metricbus.deliver(run, sinks, follow=follow, timeout=timeout)
        except (ConfigError, JournalError) as error:
            fail(str(error))
        _print_counts(counts)
        complete &= not any(sink.pending or sink.rejected for sink in counts.values())
    if not complete:
        raise typer.Exit(1)


def _problems(settings: Settings) -> list[str]:
    """What would keep a bus from being made, and variables that nobody reads."""
    problems = []
    try:
        for url in parse_sinks(settings.sinks):
            make_sink(url)
    except ConfigError as error:
        problems.append(str(error))
    known = {setting.variable for setting in declared()}
    for variable in sorted(os.environ.keys() - known):
        if variable.startswith("METRICBUS_"):
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{variable} is set, but there is no such setting{hint}")
    return problems


def _print_report(report: Report, folder: Path) -> None:
    reduced = (
        f"{report.reduced:,} of them reduced to {report.derived:,}, " if report.reduced else ""
    )
    print(f"{report.logged:,} values logged, {reduced}{report.dropped:,} dropped. Where they are:")
    print(f"  journal: {folder / 'journal'}")
    _print_counts(report.sinks)


def _print_counts(sinks: Mapping[str, SinkCounts]) -> None:
    for name, sink in sinks.items():
        print(f"  {name}: {sink.where}")
        if sink.command:
            print(f"    {sink.command}")
    table = Table("sink", "delivered", "rejected", "filtered", "pending")
    for name, sink in sinks.items():
        counts = (sink.delivered, sink.rejected, sink.filtered, sink.pending)
        table.add_row(name, *(f"{count:,}" for count in counts))
    console().print(table)
    for name, sink in sinks.items():
        if sink.error:
            print(f"{name}: {sink.error}")

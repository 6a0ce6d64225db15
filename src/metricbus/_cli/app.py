"""The commands, and how they speak of what went wrong."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from metricbus import __version__
from metricbus._cli.compare import compare
from metricbus._cli.console import console, fail, print_json
from metricbus._cli.deliver import deliver, print_report
from metricbus._cli.escaping import printable
from metricbus._cli.export import export
from metricbus._cli.import_run import import_
from metricbus._cli.ls import ls
from metricbus._cli.plot import plot
from metricbus._cli.show import show
from metricbus._cli.table import Column, print_table
from metricbus._cli.tail import tail
from metricbus._common.settings import InForce, Settings, declared, reference, resolve
from metricbus._common.sink_urls import parse_sinks
from metricbus.errors import ConfigError
from metricbus.sinks import find_sink, make_sink, sink_names

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
app.command()(deliver)
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
    from metricbus._cli.demo import run_demo

    try:
        report, folder = run_demo(sinks=sinks, dir=dir, epochs=epochs)
    except ConfigError as error:
        fail(str(error))
    print_report(report, folder)
    if not report.complete:
        raise typer.Exit(1)


@app.command()
def doctor(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference of all settings instead.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
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
    problems = _problems(settings)
    if json:
        print_json({"settings": [_as_json(one) for one in in_force], "problems": problems})
    else:
        _print_settings(in_force)
        for problem in problems:
            print(printable(problem))
    if problems:
        raise typer.Exit(1)


@app.command()
def sinks(
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """List the sinks that a URL may name, and what is missing to use them.

    Example: metricbus sinks
    """
    rows = []
    for name in sink_names():
        try:
            doc = (find_sink(name).__doc__ or "").strip().splitlines()
            rows.append((name, True, doc[0] if doc else ""))
        except ConfigError as error:
            rows.append((name, False, str(error)))
    if json:
        print_json([dict(zip(("sink", "ready", "about"), row, strict=True)) for row in rows])
        return
    names, ready, words = zip(*rows, strict=True)
    print_table(
        console(),
        [
            Column("sink", names, 9),
            Column("ready", ["yes" if is_ready else "no" for is_ready in ready], 7),
            Column("what it is", words, 8, folded=True),
        ],
    )


def _as_json(one: InForce) -> dict[str, Any]:
    setting = one.setting
    about = {"variable": setting.variable, "value": one.value, "from": one.source}
    return about | {"meaning": setting.doc}


def _print_settings(in_force: Sequence[InForce]) -> None:
    """A row a setting; those that somebody has chosen stand out."""
    out = console()
    settings, values, sources = zip(*in_force, strict=True)
    names = [setting.variable for setting in settings]
    shown = ["" if value is None else str(value) for value in values]
    styles = ["bold" if source == "environment" else "" for source in sources]
    is_narrow = max(map(len, names)) > out.width // 2
    print_table(
        out,
        [
            Column("variable", names, 9, folded=is_narrow, styles=styles),
            Column("from", sources, 5, styles=styles),
            Column("in force", shown, 8, folded=True, styles=styles),
            Column("meaning", [one.doc for one in settings], 3, folded=True, styles=styles),
        ],
    )


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

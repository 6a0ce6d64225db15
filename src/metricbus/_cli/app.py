"""The typer application with all commands; `demo`, `doctor` and `sinks` are defined here."""

from __future__ import annotations

import os
import runpy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from metricbus import __version__
from metricbus._cli.compare import compare
from metricbus._cli.console import console, fail, print_json
from metricbus._cli.deliver import deliver, print_report
from metricbus._cli.export import export
from metricbus._cli.import_run import import_
from metricbus._cli.ls import ls
from metricbus._cli.plot import plot
from metricbus._cli.settings_page import settings_page
from metricbus._cli.show import show
from metricbus._cli.table import Column, print_table
from metricbus._cli.tail import tail
from metricbus._common.settings import EffectiveSetting, Settings, list_settings, resolve_settings
from metricbus._common.sink_urls import parse_sinks
from metricbus._common.validation import suggestion
from metricbus.errors import ConfigError
from metricbus.sinks import find_sink, make_sink, sink_names
from metricbus.sinks.media_text import printable

app = typer.Typer(
    name="metricbus",
    help="Log metrics once. Send them to any backend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (ls, show, tail, plot, compare, export, deliver):
    app.command()(command)
app.command("import")(import_)


@app.callback(invoke_without_command=True)
def _top_level(
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
    dir: Annotated[Path, typer.Option(help="The folder in which to create the run folder.")] = Path(
        "runs"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="The number of passes over the data.")] = 5,
) -> None:
    """Train a small network on handwritten digits and deliver its metrics to every sink.

    Example: metricbus demo --epochs 3 --sinks csv,tensorboard
    """
    packages = {"torch": "torch", "sklearn": "scikit-learn", "tqdm": "tqdm"}
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        fail(f"The demo needs {', '.join(missing)}: pip install 'metricbus[demo]'")
    # A wheel contains the program here; a checkout has it among its examples.
    program = Path(__file__).with_name("demo.py")
    if not program.exists():
        program = Path(__file__).parents[3] / "docs" / "examples" / "digits.py"
    run_demo = runpy.run_path(str(program))["run_demo"]
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
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the settings in effect, where each comes from, and problems with them.

    Example: METRICBUS_SINKS=csv metricbus doctor
    """
    if markdown:
        print(settings_page(), end="")
        return
    try:
        settings, effective = resolve_settings({})
    except ConfigError as error:
        fail(str(error))
    problems = _find_problems(settings)
    if json:
        entries = [
            {"variable": setting.variable, "value": value, "from": source, "meaning": setting.doc}
            for setting, value, source in effective
        ]
        print_json({"settings": entries, "problems": problems})
    else:
        _print_settings(effective)
        for problem in problems:
            print(printable(problem))
    if problems:
        raise typer.Exit(1)


@app.command()
def sinks(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the available sinks, and what to install for those that are not ready.

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
    names, ready, descriptions = zip(*rows, strict=True)
    print_table(
        console(),
        [
            Column("sink", names, 9),
            Column("ready", ["yes" if is_ready else "no" for is_ready in ready], 7),
            Column("description", descriptions, 8, wrapped=True),
        ],
    )


def _print_settings(effective: Sequence[EffectiveSetting]) -> None:
    """Print a row for each setting; those set by the environment are bold."""
    out = console()
    settings, values, sources = zip(*effective, strict=True)
    names = [setting.variable for setting in settings]
    texts = ["" if value is None else str(value) for value in values]
    styles = ["bold" if source == "environment" else "" for source in sources]
    is_narrow = max(map(len, names)) > out.width // 2
    print_table(
        out,
        [
            Column("variable", names, 9, wrapped=is_narrow, styles=styles),
            Column("from", sources, 5, styles=styles),
            Column("value", texts, 8, wrapped=True, styles=styles),
            Column("meaning", [item.doc for item in settings], 3, wrapped=True, styles=styles),
        ],
    )


def _find_problems(settings: Settings) -> list[str]:
    """Return errors in the sinks' URLs, and variables that no setting reads."""
    problems = []
    try:
        for url in parse_sinks(settings.sinks):
            make_sink(url)
    except ConfigError as error:
        problems.append(str(error))
    known = {setting.variable for setting in list_settings()}
    for variable in sorted(os.environ.keys() - known):
        if variable.startswith("METRICBUS_"):
            hint = suggestion(variable, known)
            problems.append(f"{variable} is set, but there is no such setting{hint}")
    return problems

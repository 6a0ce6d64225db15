"""What the commands share: where they print, how a run is named, how they say what is wrong."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import typer
from rich.console import Console

from metricbus.config import resolve
from metricbus.errors import ConfigError
from metricbus.run import RunFolder

_WIDE = 10_000  # where nobody looks at lines: a table that is piped is not to be cut


def console(*, stderr: bool = False) -> Console:
    """As wide as the terminal; where there is none, plain, and as wide as the lines."""
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty() or "COLUMNS" in os.environ:
        return Console(stderr=stderr)
    return Console(stderr=stderr, width=_WIDE)


def fail(message: str) -> NoReturn:
    """Says on standard error what is wrong, and ends with exit status 2."""
    Console(stderr=True).print(
        f"metricbus: {message}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    raise typer.Exit(2)


def print_json(value: Any) -> None:
    """One JSON document, indented; NaN and infinities are null, as JSON has it."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def runs_folder(given: Path | None = None) -> Path:
    """Where runs are: the folder given, or that of the settings."""
    if given is not None:
        return given
    try:
        settings, _ = resolve({})
    except ConfigError as error:
        fail(str(error))
    return Path(settings.dir)


def find_run(given: Path) -> RunFolder:
    """The run of this folder, or of this id in the folder of the runs; else it fails."""
    for path in (given, runs_folder() / given):
        if (path / "run.json").is_file():
            return RunFolder(path)
    if given.is_dir():
        fail(f"{given} is no run: it has no run.json; metricbus ls {given} lists the runs in it")
    fail(f"there is no run {str(given)!r}{_near(given)}; metricbus ls lists those there are")


def _near(given: Path) -> str:
    try:
        there = [entry.name for entry in os.scandir(runs_folder())]
    except OSError:
        return ""
    near = difflib.get_close_matches(given.name, there, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""

"""What the commands share: where they print, how a run is named, how they say what is wrong."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import typer
from rich.console import Console

from metricbus.cli.safe import json_text, printable
from metricbus.config import resolve
from metricbus.errors import ConfigError, JournalError, MetricBusError
from metricbus.records import FORMAT_VERSION
from metricbus.run import Run, RunFolder

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
        "metricbus: " + "\n".join(map(printable, message.split("\n"))),
        style="red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(2)


@contextmanager
def failing(what: object) -> Iterator[None]:
    """Has what goes wrong with a run or a file end in words, and exit status 2."""
    try:
        yield
    except MetricBusError as error:
        fail(str(error))
    except BrokenPipeError:  # nobody reads any more: no failure
        raise
    except OSError as error:
        fail(f"{error.filename or what} cannot be read: {error.strerror or error}")
    except OverflowError:  # in a journal that somebody else wrote
        fail(f"{what} has a step, an epoch or a time beyond 64 bits")


def print_json(value: Any) -> None:
    """One JSON document, indented; NaN and infinities are null, as JSON has it."""
    print(json_text(msgspec.json.format(msgspec.json.encode(value), indent=2)))


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
        if _has_run(path):
            folder = RunFolder(path)
            with failing(path):
                load_run(folder)
            return folder
    if given.is_dir():
        fail(f"{given} is no run: it has no run.json; metricbus ls {given} lists the runs in it")
    fail(f"there is no run {str(given)!r}{_near(given)}; metricbus ls lists those there are")


def load_run(folder: RunFolder) -> Run:
    """What run.json says; `JournalError` also for one of a newer format."""
    run = folder.load()
    if run.format > FORMAT_VERSION:
        raise JournalError(
            f"{folder.path / 'run.json'} is in format {run.format}, this metricbus reads up to "
            f"{FORMAT_VERSION}: pip install --upgrade metricbus"
        )
    return run


def _has_run(path: Path) -> bool:
    try:
        return (path / "run.json").is_file()
    except OSError as error:  # such as a folder without permission
        fail(f"{path} cannot be read: {error.strerror}")


def _near(given: Path) -> str:
    """Names like it in the folder where it was looked for, or else in that of the runs."""
    for folder in (given.parent, runs_folder()):
        try:
            there = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        except OSError:
            continue
        near = difflib.get_close_matches(given.name, there, n=3)
        if near:
            return f"; did you mean {' or '.join(near)}?"
    return ""

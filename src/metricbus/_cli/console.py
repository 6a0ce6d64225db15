"""What the commands share: where they print, and how they say what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import typer
from rich.console import Console

from metricbus._cli.escaping import json_text, printable
from metricbus._common.settings import resolve
from metricbus.errors import ConfigError, MetricBusError

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

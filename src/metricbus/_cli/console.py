"""Output and error handling shared by the commands."""

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

from metricbus._cli.escaping import escape_json
from metricbus._common.settings import resolve_settings
from metricbus.errors import MetricBusError
from metricbus.sinks.media_text import printable

# Output to a pipe or a file is not cut to a width.
_UNLIMITED_WIDTH = 10_000


def console(*, stderr: bool = False) -> Console:
    """Return a console that is as wide as the terminal, and unlimited if there is none."""
    stream = sys.stderr if stderr else sys.stdout
    has_width = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if has_width else _UNLIMITED_WIDTH)


def fail(message: str) -> NoReturn:
    """Print an error to standard error and exit with status 2."""
    Console(stderr=True).print(
        "metricbus: " + "\n".join(map(printable, message.split("\n"))),
        style="red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(2)


@contextmanager
def report_errors(subject: object) -> Iterator[None]:
    """Turn errors from reading `subject`, a run or a file, into messages and exit status 2."""
    try:
        yield
    except MetricBusError as error:
        fail(str(error))
    except BrokenPipeError:
        # The reader of a pipe has closed it, which is not a failure.
        raise
    except OSError as error:
        fail(f"{error.filename or subject} cannot be read: {error.strerror or error}")
    except OverflowError:
        # Only journals written by other programs have such numbers.
        fail(f"{subject} has a step, an epoch or a time that does not fit into 64 bits")


def print_json(value: Any) -> None:
    """Print an indented JSON document; NaN and infinities become null."""
    print(escape_json(msgspec.json.format(msgspec.json.encode(value), indent=2)))


def runs_folder(given: Path | None = None) -> Path:
    """Return the folder that contains the runs: the one given, else the one in the settings."""
    if given is not None:
        return given
    with report_errors("the settings"):
        settings, _ = resolve_settings({})
    return Path(settings.dir)

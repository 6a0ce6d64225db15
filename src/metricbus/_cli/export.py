"""The command `metricbus export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Annotated, cast

import typer

from metricbus._cli.console import fail, failing
from metricbus._cli.escaping import Screen
from metricbus._cli.format import reading
from metricbus._cli.run_lookup import find_run
from metricbus._history.export import Format, Numbers, check_parquet, write
from metricbus._history.name_filter import NameFilter
from metricbus._journal.run import RunFolder


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run: its folder, id or name.")],
    format: Annotated[
        Format, typer.Option(help="A line a value (csv, json, parquet) or a step (csv-wide).")
    ] = Format.CSV,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; else standard output.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Series to take, as 'val/*'; several times for more.")
    ] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Keep what a rewind went back before.")
    ] = False,
) -> None:
    """Write a run's numbers as CSV, JSON or Parquet, exactly.

    Example: metricbus export runs/digits-20260131-142530-k3x9a --format parquet --out a.parquet
    """
    folder = find_run(run)
    if format is Format.PARQUET and out is None:
        fail("Parquet is no text: give a file by --out, such as --out run.parquet")
    with failing(folder.path), _reading(folder, out) as tell:
        if format is Format.PARQUET:
            check_parquet()
        numbers = Numbers(folder, NameFilter(name or ()), superseded=superseded, on_progress=tell)
        if out is None:
            _write_out(numbers, format)
        else:
            _write_file(numbers, format, out)
    if name and not numbers.values:
        fail(numbers.wanted.unfound())
    _tell(numbers, out)


def _reading(
    folder: RunFolder, out: Path | None
) -> AbstractContextManager[Callable[[int, int], None]]:
    """A bar; not where it would come between the lines on a terminal."""
    if out is None and sys.stdout.isatty():
        return nullcontext(lambda done, total: None)
    return reading(f"reading {folder.path.name}")


def _write_out(numbers: Numbers, format: Format) -> None:
    out = sys.stdout.buffer
    write(numbers, format, cast(IO[bytes], Screen(out)) if sys.stdout.isatty() else out)
    out.flush()


def _write_file(numbers: Numbers, format: Format, out: Path) -> None:
    """The file is there as a whole or as it was; what is no file (a pipe, say) is written into."""
    if out.is_dir():
        fail(f"--out {out} is a folder: give a file, such as --out {out / 'run.csv'}")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    into = out if out.exists() and not out.is_file() else temporary
    try:
        with open(into, "wb") as file:
            write(numbers, format, file)
        if into == temporary and (numbers.values or not numbers.wanted.globs):
            os.replace(temporary, out)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is not None and Path(error.filename) != into:
            raise  # it is the journal that cannot be read
        fail(f"--out {out} cannot be written: {error.strerror}")
    finally:
        temporary.unlink(missing_ok=True)


def _tell(numbers: Numbers, out: Path | None) -> None:
    """How much it was, if that does not come between; and what could not be read."""
    if numbers.damaged:
        print(
            f"metricbus: lines of the journal that cannot be read: {numbers.damaged:,}",
            file=sys.stderr,
        )
    if out is not None:
        series = len(numbers.wanted.found())
        print(f"{numbers.values:,} values of {series:,} series in {out}")

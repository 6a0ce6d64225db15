"""The command `metricbus export`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Annotated, cast

import typer

from metricbus._cli.console import fail, report_errors
from metricbus._cli.escaping import EscapingWriter
from metricbus._cli.format import progress_bar
from metricbus._cli.run_lookup import find_run
from metricbus._history.export import ExportFormat, ScalarSource, check_parquet, write_export
from metricbus._history.name_filter import NameFilter


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run: its folder, id or name.")],
    format: Annotated[
        ExportFormat,
        typer.Option(help="One line per value (csv, json, parquet) or per step (csv-wide)."),
    ] = ExportFormat.CSV,
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: standard output.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Only series matching this name or glob, such as 'val/*'. Repeatable."),
    ] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Include values that a rewind has superseded.")
    ] = False,
) -> None:
    """Write a run's numbers as CSV, JSON or Parquet, without loss of precision.

    Example: metricbus export runs/digits-20260131-142530-k3x9a --format parquet --out a.parquet
    """
    folder = find_run(run)
    if format is ExportFormat.PARQUET and out is None:
        fail("Parquet is a binary format. Name a file, such as --out run.parquet.")
    # A progress bar would appear between the lines that are printed on a terminal.
    is_hidden = out is None and sys.stdout.isatty()
    bar = progress_bar(f"Reading {folder.path.name}", is_hidden=is_hidden)
    with report_errors(folder.path), bar as on_progress:
        if format is ExportFormat.PARQUET:
            check_parquet()
        names = NameFilter(name or ())
        source = ScalarSource(folder, names, superseded=superseded, on_progress=on_progress)
        if out is None:
            _write_stdout(source, format)
        else:
            _write_file(source, format, out)
    if name and not source.values:
        fail(names.no_match_message())
    if source.damaged:
        print(f"metricbus: Damaged journal lines skipped: {source.damaged:,}", file=sys.stderr)
    if out is not None:
        print(f"Wrote {source.values:,} values of {len(names.matched_names()):,} series to {out}")


def _write_stdout(source: ScalarSource, format: ExportFormat) -> None:
    out = sys.stdout.buffer
    write_export(source, format, cast(IO[bytes], EscapingWriter(out)) if out.isatty() else out)
    out.flush()


def _write_file(source: ScalarSource, format: ExportFormat, out: Path) -> None:
    """Replace the file atomically. Devices and pipes are written to directly."""
    if out.is_dir():
        fail(f"--out {out} is a folder. Name a file, such as --out {out / 'run.csv'}.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    target = out if out.exists() and not out.is_file() else temporary
    try:
        with open(target, "wb") as file:
            write_export(source, format, file)
        if target == temporary and (source.values or not source.name_filter.globs):
            os.replace(temporary, out)
    except BrokenPipeError:
        raise
    except OSError as error:
        # Errors with another file's name come from reading the journal.
        if error.filename is not None and Path(error.filename) != target:
            raise
        fail(f"--out {out} cannot be written: {error.strerror}")
    finally:
        temporary.unlink(missing_ok=True)

"""The command `metricbus import`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metricbus._cli.console import fail, print_json, runs_folder
from metricbus._cli.format import progress_bar
from metricbus._importers import ImportTarget, import_csv, import_tensorboard
from metricbus.errors import MetricBusError


class ImportFormat(StrEnum):
    """The formats that can be imported."""

    TENSORBOARD = "tensorboard"
    CSV = "csv"


def import_(
    format: Annotated[ImportFormat, typer.Argument(help="The format of the files.")],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A CSV file; an event file or a folder of them.")
    ],
    *,
    run: Annotated[
        str | None, typer.Option(help="The new run's name. Default: that of the file or folder.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="The new run's id. Default: name and time.")
    ] = None,
    dir: Annotated[
        Path | None, typer.Option(help="The folder in which to create the run folder.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="The project of the new run.")] = None,
    each: Annotated[
        bool, typer.Option("--each", help="tensorboard: one run per folder of event files.")
    ] = False,
    step: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="csv: the column of steps. Default: step.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="csv: the column of times.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Create a run from event files or a CSV file, to be read or delivered to any sink.

    Example: metricbus import tensorboard logs/resnet50 --project imagenet
    """
    # An option of another format would be ignored silently.
    if format is ImportFormat.CSV and each:
        fail("--each is an option for tensorboard. A CSV file is always one run.")
    if format is ImportFormat.TENSORBOARD and (step or time):
        fail("--step and --time are options for csv. Event files have their own steps and times.")
    if each and id is not None:
        fail("--each creates several runs, but --id names only one. Leave out one of them.")
    name = run or path.absolute().name.removesuffix(".csv")
    target = ImportTarget(runs_folder(dir).expanduser(), name, id, project)
    try:
        with progress_bar(f"Reading {path.name}") as on_progress:
            if format is ImportFormat.TENSORBOARD:
                results = import_tensorboard(path, target, each=each, on_progress=on_progress)
            else:
                step = step or "step"
                results = [import_csv(path, target, step=step, time=time, on_progress=on_progress)]
    except MetricBusError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or path}: {error.strerror or error}")
    if json:
        print_json(results)
        return
    for result in results:
        print(
            f"{result.name}: {result.values:,} values in {result.rows:,} rows, {result.media:,} "
            f"media, {result.series:,} series"
        )
        for line in result.left_out:
            print(f"  left out: {line}")
        print(f"  {result.folder}")

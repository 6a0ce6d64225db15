"""The command `metricbus import`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metricbus._cli.console import fail, print_json, runs_folder
from metricbus._cli.format import reading
from metricbus._importers import Destination, Imported, import_csv, import_tensorboard
from metricbus.errors import MetricBusError


class Source(StrEnum):
    """What may be read."""

    TENSORBOARD = "tensorboard"
    CSV = "csv"


def import_(
    format: Annotated[Source, typer.Argument(help="What wrote it.")],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A CSV file; an event file or a folder of them.")
    ],
    *,
    run: Annotated[
        str | None, typer.Option(help="The new run's name; else that of the file or folder.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="The new run's id; else one is made.")] = None,
    dir: Annotated[Path | None, typer.Option(help="The folder for the run's folder.")] = None,
    project: Annotated[str | None, typer.Option(help="The project that it belongs to.")] = None,
    each: Annotated[
        bool, typer.Option("--each", help="tensorboard: a run of each folder with event files.")
    ] = False,
    step: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="csv: where the steps are; else 'step'.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="csv: where the times are.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make a run of event files or of a CSV file, to be read, or delivered to any sink.

    Example: metricbus import tensorboard logs/resnet50 --project imagenet
    """
    _check(format, each=each, id=id, columns=(step, time))
    name = run or path.absolute().name.removesuffix(".csv")
    to = Destination(runs_folder(dir).expanduser(), name, id, project)
    try:
        with reading(f"reading {path.name}") as tell:
            if format is Source.TENSORBOARD:
                made = import_tensorboard(path, to, each=each, on_progress=tell)
            else:
                made = [import_csv(path, to, step=step or "step", time=time, on_progress=tell)]
    except MetricBusError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or path}: {error.strerror or error}")
    if json:
        print_json(made)
        return
    for one in made:
        _tell(one)


def _check(format: Source, *, each: bool, id: str | None, columns: tuple[str | None, ...]) -> None:
    """An option of another format would do nothing, and nobody would know."""
    if format is Source.CSV and each:
        fail("--each is for tensorboard; a CSV file is one run")
    if format is Source.TENSORBOARD and any(columns):
        fail("--step and --time are for csv; event files have their own steps and times")
    if each and id is not None:
        fail("--each makes several runs, and --id names one: leave one of them out")


def _tell(made: Imported) -> None:
    print(
        f"{made.name}: {made.values:,} values in {made.rows:,} rows, {made.media:,} media, "
        f"{made.series:,} series"
    )
    for line in made.left_out:
        print(f"  left out: {line}")
    print(f"  {made.folder}")

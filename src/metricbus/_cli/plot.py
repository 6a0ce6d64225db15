"""The command `metricbus plot`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from metricbus._cli.console import console, fail, failing
from metricbus._cli.format import reading
from metricbus._cli.run_lookup import find_run
from metricbus._history.history import History
from metricbus.errors import MissingPackageError

_MOST_PANELS = 24  # more is no picture that anybody reads


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs: folders, ids or names.")
    ],
    *,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name", help="Name or glob, such as 'val/*'; again for more.", metavar="GLOB"
        ),
    ] = None,
    x: Annotated[
        str, typer.Option("--x", help="step, epoch, time (since the start), or a name.")
    ] = "step",
    smooth: Annotated[
        float, typer.Option(help="Weight of the past in an exponential mean: 0 to below 1.")
    ] = 0.0,
    log: Annotated[bool, typer.Option("--log", help="A logarithmic scale of values.")] = False,
    together: Annotated[
        bool, typer.Option("--together", help="All names in one plot, not in one each.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The file: .png, .svg or .pdf; else <run>.png here.")
    ] = None,
    term: Annotated[bool, typer.Option("--term", help="Draw in the terminal, no file.")] = False,
) -> None:
    """Draw series of one or more runs, laid over each other, into a picture.

    No peak is lost, however long the run. NaN and infinities are gaps, with a cross at the edge.
    How long epochs took is in `time/epoch`, drawn as bars: metricbus plot RUN --name time/epoch.
    With --x epoch, what was logged on steps is spread over its epoch.

    Example: metricbus plot runs/a runs/b --name 'val/*' --smooth 0.9 --out val.png
    """
    from metricbus._history.plots.matplotlib_figure import FORMATS

    if out is not None and out.suffix.lower() not in FORMATS:
        fail(f"--out {out}: a picture's name ends with {', '.join(FORMATS)}")
    try:
        histories = [_history(run) for run in runs]
        _draw(
            histories,
            name or [],
            x=x,
            smooth=smooth,
            log=log,
            together=together,
            out=out,
            term=term,
        )
    except MissingPackageError as error:
        fail(str(error))


def _history(run: Path) -> History:
    folder = find_run(run)
    with failing(folder.path), reading(f"reading {folder.path.name}") as tell:
        return History(folder, on_progress=tell)


def _draw(
    histories: Sequence[History],
    globs: Sequence[str],
    *,
    x: str,
    smooth: float,
    log: bool,
    together: bool,
    out: Path | None,
    term: bool,
) -> None:
    from metricbus._history.plots.panels import all_names, matching, panels_of

    there = all_names(histories)
    if not there:
        fail(f"no numbers were logged in {', '.join(history.run.id for history in histories)}")
    try:
        names = _not_too_many(matching(there, globs), together=together)
        panels = panels_of(histories, names, x=x, smooth=smooth, together=together)
    except (KeyError, ValueError) as error:
        fail(str(error.args[0]))
    if term:
        from metricbus._history.plots.plotext_plot import text_of

        size = shutil.get_terminal_size((100, 24))
        out_there = console()
        colour = out_there.is_terminal and not out_there.no_color
        print(
            text_of(panels, width=size.columns, height=size.lines, log=log, colour=colour), end=""
        )
        return
    from metricbus._history.plots.matplotlib_figure import figure_of, save

    path = out or Path(_file_name(histories))
    try:
        save(figure_of(panels, title=_title(histories), log=log), path)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    print(path)


def _not_too_many(names: list[str], *, together: bool) -> list[str]:
    if together or len(names) <= _MOST_PANELS:
        return names
    print(
        f"metricbus: drawing the first {_MOST_PANELS} of {len(names):,} names; "
        "choose some by --name, such as --name 'val/*'",
        file=sys.stderr,
    )
    return names[:_MOST_PANELS]


def _title(histories: Sequence[History]) -> str:
    first = histories[0].run
    if len(histories) == 1:
        return first.id if first.id.startswith(first.name) else f"{first.name} ({first.id})"
    return f"{len(histories)} runs"


def _file_name(histories: Sequence[History]) -> str:
    others = f"-and-{len(histories) - 1}-more" if len(histories) > 1 else ""
    return f"{histories[0].run.id}{others}.png"

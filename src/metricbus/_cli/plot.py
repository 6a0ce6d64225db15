"""The command `metricbus plot`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metricbus._cli.console import console, fail, report_errors
from metricbus._cli.format import progress_bar
from metricbus._cli.run_lookup import find_run
from metricbus._history.history import History
from metricbus._history.name_filter import NameFilter
from metricbus.errors import MissingPackageError

if TYPE_CHECKING:
    from metricbus._history.plots.panels import Panel

_MAX_PANELS = 24


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs: folders, ids or names.")
    ],
    *,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name", help="Name or glob of series, such as 'val/*'. Repeatable.", metavar="GLOB"
        ),
    ] = None,
    x: Annotated[
        str, typer.Option("--x", help="step, epoch, time (since the start), or a series name.")
    ] = "step",
    smooth: Annotated[
        float, typer.Option(help="Weight of past values in an exponential mean, from 0 to below 1.")
    ] = 0.0,
    log: Annotated[bool, typer.Option("--log", help="Use a logarithmic y axis.")] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Draw all series in one plot.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The image file: .png, .svg or .pdf. Default: <run>.png in this folder."),
    ] = None,
    term: Annotated[
        bool, typer.Option("--term", help="Draw in the terminal instead of a file.")
    ] = False,
) -> None:
    """Plot series of one or more runs, overlaid, into an image file.

    Peaks are kept, however long the run is. NaN and infinite values are gaps, with a cross at the
    edge of the plot. `time/epoch` has the duration of each epoch, drawn as bars:
    metricbus plot RUN --name time/epoch. With --x epoch, values logged by step are spread over
    their epoch.

    Example: metricbus plot runs/a runs/b --name 'val/*' --smooth 0.9 --out val.png
    """
    from metricbus._history.plots.matplotlib_figure import IMAGE_SUFFIXES
    from metricbus._history.plots.panels import make_panels, match_names, series_names

    if out is not None and out.suffix.lower() not in IMAGE_SUFFIXES:
        fail(f"--out {out} is not an image file. Use one of: {', '.join(IMAGE_SUFFIXES)}.")
    try:
        patterns = [*(name or []), x] if name else []
        names_filter = NameFilter(patterns)
        thinned = x == "step" and not smooth and not log
        histories = [_read_history(run, names_filter, thinned=thinned) for run in runs]
        all_names = names_filter.names()
        if not all_names:
            fail(f"No numbers were logged in {', '.join(history.run.id for history in histories)}.")
        try:
            drawable = set(series_names(histories))
            names = [name for name in match_names(all_names, name or []) if name in drawable]
            if not together and len(names) > _MAX_PANELS:
                print(
                    f"metricbus: Drawing the first {_MAX_PANELS} of {len(names):,} series. Select "
                    "series with --name, such as --name 'val/*'.",
                    file=sys.stderr,
                )
                names = names[:_MAX_PANELS]
            panels = make_panels(histories, names, x=x, smooth=smooth, together=together)
        except (KeyError, ValueError) as error:
            fail(str(error.args[0]))
        if term:
            _print_plot(panels, log=log)
        else:
            _save_plot(panels, histories, out, log=log)
    except MissingPackageError as error:
        fail(str(error))


def _read_history(run: Path, names: NameFilter, *, thinned: bool) -> History:
    folder = find_run(run)
    name = folder.path.name
    with report_errors(folder.path), progress_bar(f"Reading {name}") as on_progress:
        return History(folder, scalars=names, thinned=thinned, on_progress=on_progress)


def _print_plot(panels: Sequence[Panel], *, log: bool) -> None:
    from metricbus._history.plots.plotext_plot import render_text

    size = shutil.get_terminal_size((100, 24))
    terminal = console()
    color = terminal.is_terminal and not terminal.no_color
    print(render_text(panels, width=size.columns, height=size.lines, log=log, color=color), end="")


def _save_plot(
    panels: Sequence[Panel], histories: Sequence[History], path: Path | None, *, log: bool
) -> None:
    from metricbus._history.plots.matplotlib_figure import make_figure, save_figure

    first, others = histories[0].run, len(histories) - 1
    title = first.id if first.id.startswith(first.name) else f"{first.name} ({first.id})"
    if others:
        title = f"{len(histories)} runs"
    path = path or Path(f"{first.id}{f'-and-{others}-more' if others else ''}.png")
    try:
        save_figure(make_figure(panels, title=title, log=log), path)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    print(path)

"""The command `metricbus compare`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from metricbus._cli.console import console, fail, print_json
from metricbus._cli.escaping import path_text
from metricbus._cli.format import NO_VALUE, format_duration, format_number
from metricbus._cli.run_lookup import find_run
from metricbus._cli.run_reader import RunDetails, read_run
from metricbus._cli.table import Column, fits, print_table
from metricbus._common.records import Number
from metricbus._history.name_filter import no_match_message
from metricbus.sinks.media_text import printable

# In place of the value of a config key that a run does not have.
_MISSING = object()


class Statistic(StrEnum):
    """The values of a series that can be compared."""

    LAST = "last"
    MIN = "min"
    MAX = "max"
    MEAN = "mean"


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs: folders, ids or names.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only values whose name matches.")
    ] = None,
    by: Annotated[
        Statistic, typer.Option(help="Which value of each series to compare.")
    ] = Statistic.LAST,
    all: Annotated[
        bool, typer.Option("--all", help="Also show config values that are the same in all runs.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs: the differences in their configs, and their values side by side.

    These are the series, and the final values of bus.summarize() and define(best=).
    The difference from the first run's value is shown in parentheses.

    Example: metricbus compare runs/base runs/wider --name 'val/*' --by max
    """
    if len(runs) < 2:
        fail("Nothing to compare. Give two runs or more: 'metricbus compare RUN RUN'.")
    details = [read_run(folder) for folder in map(find_run, runs)]
    names = _series_names(details, name)
    config = _config_rows(details, include_equal=all)
    values = {series: [_value(run, series, by) for run in details] for series in names}
    if json:
        print_json(_comparison_json(details, config, values, by))
        return
    out = console()
    titles = _titles(details)
    _print_side_by_side(out, "run", titles, _facts(details))
    out.print()
    if config:
        cells = {
            key: [NO_VALUE if value is _MISSING else printable(value) for value in row]
            for key, row in config.items()
        }
        _print_side_by_side(out, "config", titles, cells)
    else:
        out.print("The runs have no config." if all else "The configs do not differ.")
    out.print()
    cells = {series: _cells_with_deltas(row) for series, row in values.items()}
    _print_side_by_side(out, by.value, titles, cells)


def _series_names(details: Sequence[RunDetails], glob: str | None) -> list[str]:
    """Return the names of all runs' series that match, in order of first appearance."""
    names = list(dict.fromkeys(name for run in details for name in run.last_values))
    matches = names if glob is None else [name for name in names if fnmatchcase(name, glob)]
    if glob is not None and not matches:
        fail(no_match_message([glob], names))
    return matches


def _config_rows(details: Sequence[RunDetails], *, include_equal: bool) -> dict[str, list[Any]]:
    """Return each config key's value in every run."""
    configs = [run.config for run in details]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key, _MISSING) for config in configs] for key in keys}
    return {key: row for key, row in rows.items() if include_equal or not _are_equal(row)}


def _are_equal(row: Sequence[Any]) -> bool:
    return all(type(value) is type(row[0]) and value == row[0] for value in row)


def _value(run: RunDetails, series: str, statistic: Statistic) -> Number | None:
    """Return the statistic of a series, or a final value in the summary of the run."""
    summary = run.summary.series.get(series)
    value: Number | None = getattr(summary, statistic.value) if summary else None
    return value if summary else run.run.summary.get(series)


def _titles(details: Sequence[RunDetails]) -> list[str]:
    """Return the runs' names if they are unique, else their ids."""
    names = [run.run.name for run in details]
    return names if len(set(names)) == len(names) else [run.run.id for run in details]


def _facts(details: Sequence[RunDetails]) -> dict[str, list[str]]:
    durations = [run.seconds for run in details]
    return {
        "status": [run.status for run in details],
        "last step": [format_number(run.summary.last_step) for run in details],
        "values": [f"{run.summary.values:,}" for run in details],
        "time": [NO_VALUE if secs is None else format_duration(secs) for secs in durations],
    }


def _cells_with_deltas(row: Sequence[Number | None]) -> list[str]:
    """Return the values as text, each but the first with its difference from the first."""
    return [
        format_number(value) + (f" ({delta:+.3g})" if i and delta is not None else "")
        for i, (value, delta) in enumerate(zip(row, _deltas(row), strict=True))
    ]


def _deltas(row: Sequence[Number | None]) -> list[float | None]:
    """Return the differences from the first value; None if one is missing or not finite."""
    first = row[0]
    deltas = [None if value is None or first is None else value - first for value in row]
    return [delta if delta is not None and math.isfinite(delta) else None for delta in deltas]


def _print_side_by_side(
    out: Console, header: str, titles: Sequence[str], rows: dict[str, list[str]]
) -> None:
    """Print a column for each run, or a list below each key if the columns do not fit."""
    if not rows:
        return
    columns = [Column(header, list(rows), len(titles) + 1, wrapped=True)]
    for i, title in enumerate(titles):
        cells = [row[i] for row in rows.values()]
        columns.append(Column(title, cells, len(titles) - i, right=True, wrapped=True))
    if fits(columns, out.width):
        print_table(out, columns)
        return
    for key, row in rows.items():
        out.print(Text(printable(key), style="bold"), overflow="fold")
        for title, cell in zip(titles, row, strict=True):
            out.print(Text(f"  {printable(title)}: {cell}"), overflow="fold")


def _comparison_json(
    details: Sequence[RunDetails],
    config: dict[str, list[Any]],
    values: dict[str, list[Number | None]],
    by: Statistic,
) -> dict[str, Any]:
    """Return the comparison; lists are in the order of the runs, with None for missing values."""
    return {
        "runs": [
            {
                "id": run.run.id,
                "name": run.run.name,
                "folder": path_text(run.folder.path),
                "status": run.status,
                "last_step": run.summary.last_step,
                "values": run.summary.values,
                "seconds": run.seconds,
            }
            for run in details
        ],
        "config": {
            key: [None if value is _MISSING else value for value in row]
            for key, row in config.items()
        },
        "by": by.value,
        "series": {name: {"values": row, "deltas": _deltas(row)} for name, row in values.items()},
    }

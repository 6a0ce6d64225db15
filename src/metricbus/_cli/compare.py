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
from metricbus._cli.escaping import path_text, printable
from metricbus._cli.format import ABSENT, number, span
from metricbus._cli.run_lookup import find_run
from metricbus._cli.run_reader import Reading, config_of, fail_for_name, read_run, seconds_of
from metricbus._cli.table import Column, fits, print_table
from metricbus._common.records import Number

_MISSING = object()


class Which(StrEnum):
    """Which of a series's values is compared."""

    LAST = "last"
    MIN = "min"
    MAX = "max"
    MEAN = "mean"


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs: folders, ids or names.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only series of this name.")
    ] = None,
    by: Annotated[Which, typer.Option(help="Which value of a series.")] = Which.LAST,
    all: Annotated[bool, typer.Option("--all", help="What is the same in the configs, too.")] = (
        False
    ),
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare runs: what differs in their configs, and their values side by side.

    In brackets stands how far a value is from that of the first run.

    Example: metricbus compare runs/base runs/wider --name 'val/*' --by max
    """
    if len(runs) < 2:
        fail("there is nothing to compare with: metricbus compare takes two runs or more")
    read = [read_run(folder) for folder in map(find_run, runs)]
    names = _names(read, name)
    config = _config(read, everything=all)
    values = {series: [_value(one, series, by) for one in read] for series in names}
    if json:
        print_json(_as_json(read, config, values, by))
        return
    out = console()
    titles = _titles(read)
    _print_side_by_side(out, "run", titles, _facts(read))
    _print_config(out, titles, config, everything=all)
    cells = {series: _with_deltas(row) for series, row in values.items()}
    _print_side_by_side(out, by.value, titles, cells)


def _names(read: Sequence[Reading], glob: str | None) -> list[str]:
    """The series of all runs, in the order in which they first came."""
    every = list(dict.fromkeys(name for one in read for name in one.summary.series))
    if glob is None:
        return every
    found = [name for name in every if fnmatchcase(name, glob)]
    if not found:
        fail_for_name(glob, every)
    return found


def _config(read: Sequence[Reading], *, everything: bool) -> dict[str, list[Any]]:
    """Each key's values in all runs, `_MISSING` where there is none."""
    configs = [config_of(one.run) for one in read]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key, _MISSING) for config in configs] for key in keys}
    return {key: row for key, row in rows.items() if everything or not _are_same(row)}


def _are_same(row: Sequence[Any]) -> bool:
    return all(type(value) is type(row[0]) and value == row[0] for value in row)


def _value(read: Reading, series: str, by: Which) -> Number | None:
    summary = read.summary.series.get(series)
    value: Number | None = getattr(summary, by.value) if summary else None
    return value


def _titles(read: Sequence[Reading]) -> list[str]:
    """The runs' names, if these tell them apart; else their ids."""
    names = [one.run.name for one in read]
    return names if len(set(names)) == len(names) else [one.run.id for one in read]


def _facts(read: Sequence[Reading]) -> dict[str, list[str]]:
    seconds = [seconds_of(one) for one in read]
    return {
        "status": [one.status for one in read],
        "last step": [number(one.summary.last_step) for one in read],
        "values": [f"{one.summary.values:,}" for one in read],
        "time": [ABSENT if many is None else span(many) for many in seconds],
    }


def _print_config(
    out: Console, titles: Sequence[str], config: dict[str, list[Any]], *, everything: bool
) -> None:
    out.print()
    if config:
        cells = {
            key: [ABSENT if value is _MISSING else printable(value) for value in row]
            for key, row in config.items()
        }
        _print_side_by_side(out, "config", titles, cells)
    else:
        out.print("no config" if everything else "the configs do not differ")
    out.print()


def _with_deltas(row: Sequence[Number | None]) -> list[str]:
    """The values in words, with how far each is from the first."""
    deltas = _deltas(row)
    return [
        number(value) + (f" ({delta:+.3g})" if place and delta is not None else "")
        for place, (value, delta) in enumerate(zip(row, deltas, strict=True))
    ]


def _deltas(row: Sequence[Number | None]) -> list[float | None]:
    """How far each is from the first; None where that cannot be said."""
    first = row[0]
    deltas = [None if value is None or first is None else value - first for value in row]
    return [delta if delta is not None and math.isfinite(delta) else None for delta in deltas]


def _print_side_by_side(
    out: Console, what: str, titles: Sequence[str], rows: dict[str, list[str]]
) -> None:
    """One column a run; where they do not fit beside each other, below each other."""
    if not rows:
        return
    columns = [Column(what, list(rows), len(titles) + 1, folded=True)]
    for place, title in enumerate(titles):
        cells = [row[place] for row in rows.values()]
        columns.append(Column(title, cells, len(titles) - place, right=True, folded=True))
    if fits(columns, out.width):
        print_table(out, columns)
        return
    for key, row in rows.items():
        out.print(Text(printable(key), style="bold"), overflow="fold")
        for title, cell in zip(titles, row, strict=True):
            out.print(Text(f"  {printable(title)}: {cell}"), overflow="fold")


def _as_json(
    read: Sequence[Reading],
    config: dict[str, list[Any]],
    values: dict[str, list[Number | None]],
    by: Which,
) -> dict[str, Any]:
    """Values are in the order of the runs; null where a run has none."""
    return {
        "runs": [
            {
                "id": one.run.id,
                "name": one.run.name,
                "folder": path_text(one.folder.path),
                "status": one.status,
                "last_step": one.summary.last_step,
                "values": one.summary.values,
                "seconds": seconds_of(one),
            }
            for one in read
        ],
        "config": {
            key: [None if value is _MISSING else value for value in row]
            for key, row in config.items()
        },
        "by": by.value,
        "series": {name: {"values": row, "deltas": _deltas(row)} for name, row in values.items()},
    }

"""The command `metricbus ls`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from metricbus._cli.console import console, fail, print_json, runs_folder
from metricbus._cli.escaping import path_text
from metricbus._cli.format import ABSENT, STATUS_STYLES, number, reading, span
from metricbus._cli.table import Column, print_table
from metricbus._history.run_status import RunStatus, glance
from metricbus._history.sink_status import Standing
from metricbus._journal.run import Run, RunFolder
from metricbus.errors import JournalError

_WIDE, _MANY_VALUES = 100, 3  # in a narrower terminal there is room for one value


class Sort(StrEnum):
    """By what runs are sorted."""

    STARTED = "started"
    NAME = "name"
    STEPS = "steps"
    VALUES = "values"
    STATUS = "status"


class NameFilter(StrEnum):
    """The statuses that runs can have."""

    RUNNING = "running"
    SILENT = "silent"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"
    UNREADABLE = "unreadable"


class _Entry(NamedTuple):
    """A folder that has a run.json; `problem` says why it cannot be read."""

    folder: RunFolder
    run: Run | None
    seen: RunStatus | None
    problem: str

    @property
    def status(self) -> str:
        return self.seen.status if self.seen else "unreadable"

    @property
    def started(self) -> int:
        return self.run.started if self.run else 0

    @property
    def name(self) -> str:
        """By which the other commands know it: that of its folder, as a rule the run's id."""
        return self.folder.path.absolute().name


def ls(
    dir: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="Where the runs are; else METRICBUS_DIR, or runs.",
            show_default=False,
        ),
    ] = None,
    *,
    sort: Annotated[
        Sort, typer.Option(help="Newest or most first, names and statuses from a to z.")
    ] = (Sort.STARTED),
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    status: Annotated[
        list[NameFilter] | None, typer.Option(help="Only runs with this status; may come again.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only runs of this name or id.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only runs with this tag; may come again.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Which of the last values to show.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many runs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with everything known.")] = False,
) -> None:
    """List runs: status, age, steps, last values, and how far their sinks are.

    Reads the ends of the journals alone, so it is quick for runs of any length.
    Where a number of values has ~ in front, it is an estimate.

    Example: metricbus ls --status killed --sort steps
    """
    root = runs_folder(dir)
    folders = [folder for folder in _folders(root) if _is_wanted(folder, name, tag or [])]
    entries = _look_at(folders)
    if status:
        entries = [entry for entry in entries if entry.status in status]
    entries.sort(key=_KEYS[sort], reverse=reverse)
    entries = entries[:limit]
    if json:
        print_json([_as_json(entry) for entry in entries])
    elif entries:
        _print(entries, values)
    else:
        filtered = " that is wanted" if folders or name or tag or status else ""
        console(stderr=True).print(f"no run{filtered} in {root}", markup=False, soft_wrap=True)


def _by_status(entry: _Entry) -> tuple[str, int]:
    return entry.status, -entry.started


_KEYS: dict[Sort, Callable[[_Entry], Any]] = {
    Sort.STARTED: lambda entry: -entry.started,
    Sort.NAME: lambda entry: (entry.run.name if entry.run else "", entry.name),
    Sort.STEPS: lambda entry: -_or_nothing(entry.seen.step if entry.seen else None),
    Sort.VALUES: lambda entry: -_or_nothing(entry.seen.values if entry.seen else None),
    Sort.STATUS: _by_status,
}


def _or_nothing(value: int | None) -> int:
    return -1 if value is None else value


def _folders(root: Path) -> list[RunFolder]:
    """The runs in a folder; that of a run is taken for itself."""
    try:
        if (root / "run.json").is_file():
            return [RunFolder(root)]
        return [RunFolder(path) for path in sorted(root.iterdir()) if _is_run(path)]
    except FileNotFoundError:
        fail(f"there is no folder {root}: give that of your runs, or set METRICBUS_DIR")
    except OSError as error:
        fail(f"{root} cannot be read: {error.strerror}; metricbus ls takes a folder of runs")


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.json").is_file()
    except PermissionError:
        return True  # or so it may be; it is told that it cannot be read


def _is_wanted(folder: RunFolder, name: str | None, tags: Sequence[str]) -> bool:
    """By run.json alone; one that cannot be read has neither a name nor tags."""
    if name is None and not tags:
        return True
    try:
        run = folder.load()
    except (JournalError, OSError):
        return name is not None and not tags and fnmatchcase(folder.path.name, name)
    fits = name is None or fnmatchcase(run.name, name) or fnmatchcase(run.id, name)
    return fits and set(tags) <= set(run.tags)


def _look_at(folders: Sequence[RunFolder]) -> list[_Entry]:
    with reading("looking at runs") as tell:
        entries = []
        for done, folder in enumerate(folders):
            tell(done, len(folders))
            entries.append(_entry(folder))
        return entries


def _entry(folder: RunFolder) -> _Entry:
    run = None
    try:
        run = folder.load()
        return _Entry(folder, run, glance(folder, run), "")
    except JournalError as error:
        return _Entry(folder, run, None, str(error))
    except OSError as error:
        return _Entry(folder, run, None, f"{error.filename}: {error.strerror}")


def _print(entries: Sequence[_Entry], values: str | None) -> None:
    out = console()
    statuses = [entry.status for entry in entries]
    shown = _MANY_VALUES if out.width >= _WIDE else 1
    names = [entry.name for entry in entries]
    last = [_last(entry, values, shown) for entry in entries]
    is_asked_for = values is not None
    print_table(
        out,
        [
            Column("run", names, 9, folded=max(map(len, names)) > out.width // 2),
            Column("status", statuses, 7, styles=[STATUS_STYLES[status] for status in statuses]),
            Column("age", [_age(entry) for entry in entries], 4, right=True),
            Column("step", [_step(entry) for entry in entries], 6, right=True),
            Column("values", [_values(entry.seen) for entry in entries], 2, right=True),
            Column("last", last, 8 if is_asked_for else 5, folded=True),
            Column("delivery", [_delivery(entry) for entry in entries], 3, folded=True),
        ],
    )


def _age(entry: _Entry) -> str:
    return span(time.time() - entry.started / 1e9) if entry.started else ABSENT


def _step(entry: _Entry) -> str:
    return number(entry.seen.step if entry.seen else None)


def _values(seen: RunStatus | None) -> str:
    if seen is None:
        return ABSENT
    return f"{seen.values:,}" if seen.is_exact else f"~{float(f'{seen.values:.2g}'):,.0f}"


def _last(entry: _Entry, glob: str | None, few: int) -> str:
    """The newest values: those that are asked for, or a few; or why there are none to be had."""
    if entry.seen is None:
        return entry.problem
    last = list(entry.seen.last.items())
    if glob is None:
        shown, more = last[:few], len(last) - few
    else:
        shown, more = [(name, value) for name, value in last if fnmatchcase(name, glob)], 0
    text = ", ".join(f"{name} {number(value, 4)}" for name, value in shown)
    return text + (f" and {more} more" if more > 0 else "") if text else ABSENT


def _delivery(entry: _Entry) -> str:
    """What is not as it should be; else that all is there."""
    if entry.seen is None:
        return ABSENT
    total = entry.seen.dropped.total
    dropped = [f"{total:,} dropped"] if total else []
    if not entry.seen.sinks:
        return dropped[0] if dropped else ABSENT
    late = [_lag(sink) for sink in entry.seen.sinks if not sink.is_complete]
    return ", ".join([*late, *dropped]) or "all"


def _lag(sink: Standing) -> str:
    kind = sink.sink.partition("?")[0]
    parts = [] if sink.share == 1.0 else [f"{min(sink.share, 0.99):.0%}"]
    parts += [f"{sink.rejected:,} rejected"] if sink.rejected else []
    return f"{kind} {' and '.join(parts)}"


def _as_json(entry: _Entry) -> dict[str, Any]:
    about: dict[str, Any] = {"folder": path_text(entry.folder.path), "status": entry.status}
    if entry.run:
        run = entry.run
        about |= {"id": run.id, "name": run.name, "project": run.project}
        about |= {"group": run.group, "tags": run.tags}
        about |= {"started": run.started, "ended": run.ended, "attempt": run.attempt}
    if entry.seen:
        seen = entry.seen
        about |= {"step": seen.step, "epoch": seen.epoch, "changed": seen.changed}
        about |= {"values": seen.values, "values_are_exact": seen.is_exact}
        about |= {"last": seen.last, "dropped": seen.dropped, "sinks": seen.sinks}
    return about | ({"problem": entry.problem} if entry.problem else {})

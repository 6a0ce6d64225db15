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
from metricbus._cli.format import (
    NO_VALUE,
    STATUS_STYLES,
    format_duration,
    format_number,
    progress_bar,
)
from metricbus._cli.run_reader import RunDetails, read_details
from metricbus._cli.table import Column, print_table
from metricbus._history.sink_status import SinkStatus
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import JournalReader
from metricbus.errors import JournalError

# Terminals of at least this width show several of the last values, narrower ones a single one.
_WIDE, _VALUES_IF_WIDE = 100, 3


class SortKey(StrEnum):
    """What runs can be sorted by."""

    STARTED = "started"
    NAME = "name"
    STEPS = "steps"
    VALUES = "values"
    STATUS = "status"


class StatusFilter(StrEnum):
    """The statuses a run can have."""

    RUNNING = "running"
    SILENT = "silent"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"
    UNREADABLE = "unreadable"


class _Entry(NamedTuple):
    """A run in the list; if it cannot be read, `problem` is the reason."""

    folder: RunFolder
    run: Run | None = None
    details: RunDetails | None = None
    problem: str = ""

    @property
    def status(self) -> str:
        return self.details.status if self.details else "unreadable"

    @property
    def started(self) -> int:
        return self.run.started if self.run else 0

    @property
    def name(self) -> str:
        """The folder's name, which other commands accept; usually the run's id."""
        return self.folder.path.absolute().name

    @property
    def step(self) -> int | None:
        return self.details.summary.last_step if self.details else None


def _parse_sort_key(value: str) -> SortKey:
    try:
        return SortKey(value)
    except ValueError:
        keys = ", ".join(SortKey)
        raise typer.BadParameter(f"Cannot sort by {value!r}. Sort by one of: {keys}.") from None


def ls(
    dir: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="The folder that contains the runs. Default: METRICBUS_DIR, or runs.",
            show_default=False,
        ),
    ] = None,
    *,
    sort: Annotated[
        SortKey,
        typer.Option(
            parser=_parse_sort_key,
            metavar=f"<{'|'.join(SortKey)}>",
            help="Newest or largest first; names and statuses alphabetically.",
        ),
    ] = SortKey.STARTED,
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    status: Annotated[
        list[StatusFilter] | None, typer.Option(help="Only runs with this status. Repeatable.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only runs whose name or id matches.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only runs with this tag. Repeatable; all must match.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Which of the last values to show.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The maximum number of runs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON with all details.")] = False,
) -> None:
    """List runs with status, age, step, last values and delivery progress.

    Reads only the summary and the end of each long journal.

    Example: metricbus ls --status killed --sort steps
    """
    root = runs_folder(dir)
    folders = [folder for folder in _find_runs(root) if _matches(folder, name, tag or [])]
    entries = _read_entries(folders)
    if status:
        entries = [entry for entry in entries if entry.status in status]
    entries.sort(key=_SORT_VALUES[sort], reverse=reverse)
    entries = entries[:limit]
    if json:
        print_json([_entry_json(entry) for entry in entries])
    elif entries:
        _print_entries(entries, values)
    else:
        matching = " that match the filters" if folders or name or tag or status else ""
        message = f"There are no runs{matching} in {root}."
        console(stderr=True).print(message, markup=False, soft_wrap=True)


# Runs without a step or values come last.
_SORT_VALUES: dict[SortKey, Callable[[_Entry], Any]] = {
    SortKey.STARTED: lambda entry: -entry.started,
    SortKey.NAME: lambda entry: (entry.run.name if entry.run else "", entry.name),
    SortKey.STEPS: lambda entry: 1 if entry.step is None else -entry.step,
    SortKey.VALUES: lambda entry: -entry.details.summary.journal_values if entry.details else 1,
    SortKey.STATUS: lambda entry: (entry.status, -entry.started),
}


def _find_runs(root: Path) -> list[RunFolder]:
    """Return the runs in a folder; if it is itself a run, only that one."""
    try:
        if (root / "run.json").is_file():
            return [RunFolder(root)]
        return [RunFolder(path) for path in sorted(root.iterdir()) if _may_be_run(path)]
    except FileNotFoundError:
        fail(f"There is no folder {root}. Give the folder of your runs, or set METRICBUS_DIR.")
    except OSError as error:
        fail(f"{root} cannot be read: {error.strerror}. 'metricbus ls' needs a folder of runs.")


def _may_be_run(path: Path) -> bool:
    try:
        return (path / "run.json").is_file()
    except PermissionError:
        # Listed as unreadable, with the reason.
        return True


def _matches(folder: RunFolder, name: str | None, tags: Sequence[str]) -> bool:
    """Check name and tags from run.json; an unreadable run has only its folder's name."""
    if name is None and not tags:
        return True
    try:
        run = folder.load()
    except (JournalError, OSError):
        return name is not None and not tags and fnmatchcase(folder.path.name, name)
    has_name = name is None or fnmatchcase(run.name, name) or fnmatchcase(run.id, name)
    return has_name and set(tags) <= set(run.tags)


def _read_entries(folders: Sequence[RunFolder]) -> list[_Entry]:
    entries = []
    with progress_bar("Reading runs") as on_progress:
        for done, folder in enumerate(folders):
            on_progress(done, len(folders))
            run = None
            try:
                run = folder.load()
                entries.append(_Entry(folder, run, read_details(folder, with_courses=False)))
            except (JournalError, OSError) as error:
                problem = str(error)
                if isinstance(error, OSError):
                    problem = f"{error.filename}: {error.strerror}"
                entries.append(_Entry(folder, run, problem=problem))
    return entries


def _print_entries(entries: Sequence[_Entry], glob: str | None) -> None:
    out = console()
    statuses = [entry.status for entry in entries]
    limit = _VALUES_IF_WIDE if out.width >= _WIDE else 1
    names = [entry.name for entry in entries]
    last = [_last_values(entry, glob, limit) for entry in entries]
    steps = [format_number(entry.step) for entry in entries]
    counts = [
        f"{entry.details.summary.journal_values:,}" if entry.details else NO_VALUE
        for entry in entries
    ]
    print_table(
        out,
        [
            Column("run", names, 9, wrapped=max(map(len, names)) > out.width // 2),
            Column("status", statuses, 7, styles=[STATUS_STYLES[status] for status in statuses]),
            Column("age", [_age(entry) for entry in entries], 4, right=True),
            Column("step", steps, 6, right=True),
            Column("values", counts, 2, right=True),
            Column("last", last, 5 if glob is None else 8, wrapped=True),
            Column("delivery", [_delivery(entry) for entry in entries], 3, wrapped=True),
        ],
    )


def _age(entry: _Entry) -> str:
    return format_duration(time.time() - entry.started / 1e9) if entry.started else NO_VALUE


def _last_values(entry: _Entry, glob: str | None, limit: int) -> str:
    """Return the newest values: those that match, or the first few; or why they are unreadable."""
    if entry.details is None:
        return entry.problem
    last = list(entry.details.last_values.items())
    if glob is None:
        shown, more = last[:limit], len(last) - limit
    else:
        shown, more = [(name, value) for name, value in last if fnmatchcase(name, glob)], 0
    text = ", ".join(f"{name} {format_number(value, 4)}" for name, value in shown)
    return text + (f" and {more} more" if more > 0 else "") if text else NO_VALUE


def _delivery(entry: _Entry) -> str:
    """Return the sinks that are not complete, and the number of dropped values."""
    if entry.details is None:
        return NO_VALUE
    problems = [_lag(sink) for sink in entry.details.sinks if not sink.is_complete]
    if dropped := entry.details.summary.dropped.total:
        problems.append(f"{dropped:,} dropped")
    return ", ".join(problems) or ("all" if entry.details.sinks else NO_VALUE)


def _lag(sink: SinkStatus) -> str:
    parts = [] if sink.share == 1.0 else [f"{min(sink.share, 0.99):.0%}"]
    parts += [f"{sink.rejected:,} rejected"] if sink.rejected else []
    return f"{sink.sink.partition('?')[0]} {' and '.join(parts)}"


def _entry_json(entry: _Entry) -> dict[str, Any]:
    result: dict[str, Any] = {"folder": path_text(entry.folder.path), "status": entry.status}
    if run := entry.run:
        result |= {"id": run.id, "name": run.name, "project": run.project}
        result |= {"group": run.group, "tags": run.tags}
        result |= {"started": run.started, "ended": run.ended, "attempt": run.attempt}
    if details := entry.details:
        summary = details.summary
        result |= {"step": summary.last_step, "epoch": summary.last_epoch}
        result |= {"changed": JournalReader(entry.folder.journal).modified_ns()}
        result |= {"values": summary.journal_values, "dropped": summary.dropped}
        result |= {"last": details.last_values}
        result |= {"sinks": details.sinks}
    return result | ({"problem": entry.problem} if entry.problem else {})

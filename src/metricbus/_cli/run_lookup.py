"""Which run is meant: by its folder, its id or how that begins, or its name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from metricbus._cli.console import fail, failing, runs_folder
from metricbus._journal.run import Run, RunFolder
from metricbus.errors import JournalError


class _Known(NamedTuple):
    folder: RunFolder
    run: Run


def find_run(given: Path) -> RunFolder:
    """The run of this folder; or that one in the folder of the runs, whatever it is called by.

    That is its id, its name (the newest run that has it), or the beginning of its id, if no other
    begins like that. It fails if there is none, or if it cannot be read.
    """
    for path in (given, runs_folder() / given):
        if _has_run(path):
            folder = RunFolder(path)
            with failing(path):
                folder.load()
            return folder
    if given.is_dir():
        fail(f"{given} is no run: it has no run.json; metricbus ls {given} lists the runs in it")
    known = list(_known()) if given.name == str(given) else []
    found = _by_name(str(given), known) or _by_beginning(str(given), known)
    if found is None:
        near = _near(given, known)
        fail(f"there is no run {str(given)!r}{near}; metricbus ls lists those there are")
    return found


def _has_run(path: Path) -> bool:
    try:
        return (path / "run.json").is_file()
    except OSError as error:  # such as a folder without permission
        fail(f"{path} cannot be read: {error.strerror}")


def _known() -> Iterator[_Known]:
    """The runs that can be read in the folder of the runs."""
    for entry in _folders_in(runs_folder()):
        folder = RunFolder(Path(entry))
        try:
            yield _Known(folder, folder.load())
        except (JournalError, OSError):
            continue


def _by_name(name: str, known: list[_Known]) -> RunFolder | None:
    named = [one for one in known if one.run.name == name]
    return max(named, key=lambda one: one.run.started).folder if named else None


def _by_beginning(beginning: str, known: list[_Known]) -> RunFolder | None:
    begun = [one.folder for one in known if one.folder.path.name.startswith(beginning)]
    if len(begun) > 1:
        some = ", ".join(sorted(folder.path.name for folder in begun)[:3])
        more = f" and {len(begun) - 3} more" if len(begun) > 3 else ""
        fail(f"{beginning!r} is the beginning of {len(begun)} runs: {some}{more}; give more of it")
    return begun[0] if begun else None


def _near(given: Path, known: list[_Known]) -> str:
    """What is called like it where it was looked for."""
    labels = [one.run.name for one in known]
    for names in (_names_in(given.parent), _names_in(runs_folder()), labels):
        near = difflib.get_close_matches(given.name, dict.fromkeys(names), n=3)
        if near:
            return f"; did you mean {' or '.join(near)}?"
    return ""


def _names_in(folder: Path) -> list[str]:
    return [os.path.basename(path) for path in _folders_in(folder)]


def _folders_in(folder: Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []

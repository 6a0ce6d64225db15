"""Finds the run that an argument refers to: by folder, id, prefix of the id, or name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from metricbus._cli.console import fail, report_errors, runs_folder
from metricbus._journal.run import Run, RunFolder
from metricbus.errors import JournalError


def find_run(given: Path) -> RunFolder:
    """Return the run with this folder; otherwise look in the folder of all runs.

    There, an id is preferred over a name, of which the newest run counts, and a name over a unique
    prefix of an id. Exits with an error if no run matches, or if it cannot be read.
    """
    for path in (given, runs_folder() / given):
        if _has_run(path):
            folder = RunFolder(path)
            with report_errors(path):
                folder.load()
            return folder
    if given.is_dir():
        fail(
            f"{given} is not a run, because it has no run.json. List the runs in it with "
            f"'metricbus ls {given}'."
        )
    text = str(given)
    known = list(_readable_runs()) if given.name == text else []
    if named := [(run.started, folder) for folder, run in known if run.name == text]:
        return max(named, key=lambda pair: pair[0])[1]
    matches = [folder for folder, _ in known if folder.path.name.startswith(text)]
    if len(matches) > 1:
        names = ", ".join(sorted(folder.path.name for folder in matches)[:3])
        more = f" and {len(matches) - 3} more" if len(matches) > 3 else ""
        fail(f"{text!r} is a prefix of {len(matches)} runs: {names}{more}. Use a longer prefix.")
    if not matches:
        hint = _similar_names(given, [run.name for _, run in known])
        fail(f"There is no run {text!r}.{hint} List all runs with 'metricbus ls'.")
    return matches[0]


def _has_run(path: Path) -> bool:
    # For example without permission for the folder.
    with report_errors(path):
        return (path / "run.json").is_file()


def _readable_runs() -> Iterator[tuple[RunFolder, Run]]:
    for path in _subfolders(runs_folder()):
        folder = RunFolder(path)
        try:
            yield folder, folder.load()
        except (JournalError, OSError):
            continue


def _similar_names(given: Path, run_names: list[str]) -> str:
    """Return a hint with similar names of folders next to `given`, of other folders, or of runs."""
    for folder in (given.parent, runs_folder(), None):
        names = run_names if folder is None else [path.name for path in _subfolders(folder)]
        similar = difflib.get_close_matches(given.name, dict.fromkeys(names), n=3)
        if similar:
            return f" Did you mean {' or '.join(similar)}?"
    return ""


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []

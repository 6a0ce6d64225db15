"""Going on with a run: finding it by its id or name, and beginning a further attempt at it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common.processes import this_process
from metricbus._journal.run import Run, RunFolder, flat_config, plain_config, program
from metricbus.errors import ConfigError, JournalError

_SILENT_SECS = 30.0  # a process of another machine that has written nothing for so long is dead


def find_run(root: Path, id: str | None, name: str | None) -> RunFolder | None:
    """The run under `root` with this id; without one, the only run of this name.

    None if there is none. Raises `ConfigError` if there are several, and names them.
    """
    if id is not None:
        folder = RunFolder(root.absolute() / id)
        return folder if (folder.path / "run.json").is_file() else None
    if name is None:
        raise ConfigError("resume= needs to know which run: give its id= or its name by run=")
    found = [(folder, run) for folder, run in _runs_in(root) if run.name == name]
    if len(found) > 1:
        listed = "\n".join(
            f"  id={run.id!r}, {run.status}, begun {_when(run.started)}" for _, run in found
        )
        raise ConfigError(
            f"{len(found)} runs in {root} are called {name!r}; say which by its id:\n{listed}"
        )
    return found[0][0] if found else None


def resume_run(folder: RunFolder, config: Mapping[str, Any], **about: Any) -> tuple[RunFolder, Run]:
    """A further attempt at the run; what is given replaces what was, key by key in the config.

    Raises `ConfigError` if the process of the last attempt still lives.
    """
    last = folder.load()
    _check_is_over(folder, last)
    merged = {**last.config, **plain_config(config)}
    flat_config(merged)
    owner = this_process()
    run = msgspec.structs.replace(
        last,
        config=merged,
        host=owner.host,
        pid=owner.pid,
        process_started=owner.started,
        program=program(),
        status="running",
        ended=None,
        attempt=last.attempt + 1,
        **{key: value for key, value in about.items() if value},
    )
    try:
        folder.save(run)
    except OSError as error:
        raise ConfigError(f"cannot go on with {folder.path}: {error.strerror}") from error
    return folder, run


def _check_is_over(folder: RunFolder, run: Run) -> None:
    process = run.process
    if run.status != "running" or not process.is_alive():
        return
    if not process.is_local:
        newest = max((path.stat().st_mtime for path in folder.journal.iterdir()), default=0.0)
        if time.time() - newest > _SILENT_SECS:
            return
    raise ConfigError(
        f"the run {run.id} is still at work, in {process}; end that first, or leave resume= out "
        "to have a new run"
    )


def _runs_in(root: Path) -> list[tuple[RunFolder, Run]]:
    """The runs whose run.json can be read, the oldest first."""
    found = []
    for path in root.absolute().glob("*/run.json"):
        folder = RunFolder(path.parent)
        try:
            found.append((folder, folder.load()))
        except JournalError:
            continue
    return sorted(found, key=lambda pair: pair[1].started)


def _when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))

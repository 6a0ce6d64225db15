"""Resuming a run: finding it by id or name, and starting a further attempt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common.processes import this_process
from metricbus._journal.run import Run, RunFolder, flat_config, main_script, plain_config
from metricbus._journal.run_updates import complete_run
from metricbus._journal.segment_reader import JournalReader
from metricbus.errors import ConfigError, JournalError

# A process on another machine counts as dead after this time without writes.
_SILENT_SECS = 30.0


def find_run(root: Path, id: str | None, name: str | None) -> RunFolder | None:
    """Return the run under `root` with this id or, if `id` is None, the only one with this name.

    Returns None if there is none. Raises `ConfigError` if several runs have the name, and lists
    them.
    """
    if id is not None:
        folder = RunFolder(root.absolute() / id)
        return folder if (folder.path / "run.json").is_file() else None
    if name is None:
        raise ConfigError("resume= does not say which run to resume: pass its id= or its name=")
    matches = [(folder, run) for folder, run in _runs_in(root) if run.name == name]
    if len(matches) > 1:
        listed = "\n".join(
            f"  id={run.id!r}, {run.status}, started {_format_time(run.started)}"
            for _, run in matches
        )
        raise ConfigError(
            f"{len(matches)} runs in {root} have the name {name!r}; choose one by its id:\n{listed}"
        )
    return matches[0][0] if matches else None


def resume_run(
    folder: RunFolder, config: Mapping[str, Any], **fields: Any
) -> tuple[RunFolder, Run]:
    """Start a further attempt at the run, as this process.

    The `config` is merged into the previous one, key by key, and `tags` are added to the previous
    ones; other `fields` of `Run` replace the previous ones unless they are empty. Raises
    `ConfigError` if the last attempt's process is still alive, or if run.json cannot be written.
    """
    last = complete_run(folder)
    _check_not_running(folder, last)
    merged = {**last.config, **plain_config(config)}
    flat_config(merged)  # raises for a name that the merge made ambiguous
    fields["tags"] = [*dict.fromkeys([*last.tags, *fields.get("tags", ())])]
    owner = this_process()
    run = msgspec.structs.replace(
        last,
        config=merged,
        host=owner.host,
        pid=owner.pid,
        process_started=owner.started,
        program=main_script(),
        status="running",
        ended=None,
        attempt=last.attempt + 1,
        **{key: value for key, value in fields.items() if value},
    )
    try:
        folder.save(run)
    except OSError as error:
        raise ConfigError(f"cannot resume {folder.path}: {error.strerror}") from error
    return folder, run


def _check_not_running(folder: RunFolder, run: Run) -> None:
    process = run.process
    if run.status != "running" or not process.is_alive():
        return
    if not process.is_local:
        silent_secs = time.time() - JournalReader(folder.journal).modified_ns() / 1e9
        if silent_secs > _SILENT_SECS:
            return
    raise ConfigError(
        f"run {run.id} cannot be resumed because it is still running, in {process}; stop that "
        "process first, or omit resume= to create a new run"
    )


def _runs_in(root: Path) -> list[tuple[RunFolder, Run]]:
    """Return the runs whose run.json can be read, oldest first."""
    runs = []
    for path in root.absolute().glob("*/run.json"):
        folder = RunFolder(path.parent)
        try:
            runs.append((folder, folder.load()))
        except JournalError:
            continue
    return sorted(runs, key=lambda pair: pair[1].started)


def _format_time(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))

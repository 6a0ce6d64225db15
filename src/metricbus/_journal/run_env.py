"""How a run is found by the processes that it starts: `METRICBUS_RUN_DIR` names its folder."""

from __future__ import annotations

import os
from pathlib import Path

from metricbus._common.settings import env_variable

_RUN_DIR = env_variable("run_dir")
_announced: tuple[int, str] | None = None  # (pid, folder) of the run that this process announced
_inherited: str | None = None  # what the variable said before


def export_run_dir(folder: Path) -> None:
    """Tells the processes that this one starts which run is theirs; the first run is."""
    global _announced, _inherited
    if _announced is None or _announced[0] != os.getpid():
        _inherited = os.environ.get(_RUN_DIR)
        _announced = (os.getpid(), str(folder))
        os.environ[_RUN_DIR] = str(folder)


def restore_run_dir(folder: Path) -> None:
    """The run has ended."""
    global _announced
    if _announced == (os.getpid(), str(folder)):
        _announced = None
        if _inherited is None:
            os.environ.pop(_RUN_DIR, None)
        else:
            os.environ[_RUN_DIR] = _inherited


def is_own_run_dir(folder: str) -> bool:
    """Whether it was this process that announced it."""
    return _announced == (os.getpid(), folder)

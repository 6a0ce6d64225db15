"""The environment variable `METRICBUS_RUN_DIR`, by which child processes find the run to join."""

from __future__ import annotations

import os
from pathlib import Path

from metricbus._common.settings import env_variable

_RUN_DIR = env_variable("run_dir")
_exported: tuple[int, str] | None = None  # (pid, folder) of the run that this process exported
_inherited: str | None = None  # the variable's value before that


def export_run_dir(folder: Path) -> None:
    """Set the variable to `folder`, unless this process has already exported another run."""
    global _exported, _inherited
    if _exported is None or _exported[0] != os.getpid():
        _inherited = os.environ.get(_RUN_DIR)
        _exported = (os.getpid(), str(folder))
        os.environ[_RUN_DIR] = str(folder)


def restore_run_dir(folder: Path) -> None:
    """Restore the inherited value if this process exported `folder`; called when the run ends."""
    global _exported
    if is_own_run_dir(str(folder)):
        _exported = None
        if _inherited is None:
            os.environ.pop(_RUN_DIR, None)
        else:
            os.environ[_RUN_DIR] = _inherited


def is_own_run_dir(folder: str) -> bool:
    """Check whether this process exported `folder`."""
    return _exported == (os.getpid(), folder)

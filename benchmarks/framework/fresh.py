"""A new interpreter for what can only be measured once, or must not find anything imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.framework.machine import ROOT


def fresh(arguments: Sequence[str], folder: Path, timeout: float = 300.0) -> str:
    """What a new interpreter that works in `folder` prints; `RuntimeError` if it fails.

    It writes to files, not to pipes: a backend's own process may outlive it, and hold a pipe open.
    """
    command = [sys.executable, "-W", "ignore", *arguments]
    said, complaints = folder / "stdout.txt", folder / "stderr.txt"
    with open(said, "wb") as out, open(complaints, "wb") as err:
        done = subprocess.run(
            command,
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=timeout,
            check=False,
        )
    if done.returncode:
        last_words = complaints.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"a worker ended with {done.returncode}:\n{last_words}")
    return said.read_text()


def _environment(folder: Path) -> dict[str, str]:
    """Ours without what would change the buses' settings; the backends keep to the folder."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("METRICBUS_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder),
        "WANDB_CONFIG_DIR": str(folder),
        "WANDB_DATA_DIR": str(folder),
    }

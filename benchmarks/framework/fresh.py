"""Runs code in a new interpreter, for measurements that need one without imported modules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.framework.machine import ROOT


def run_fresh(arguments: Sequence[str], folder: Path, timeout: float = 300.0) -> str:
    """Run a new interpreter in `folder`; return its standard output.

    The output goes to files instead of pipes, because a process started by a backend may outlive
    the interpreter and keep a pipe open. Raises `RuntimeError` if the interpreter fails.
    """
    command = [sys.executable, "-W", "ignore", *arguments]
    stdout, stderr = folder / "stdout.txt", folder / "stderr.txt"
    with open(stdout, "wb") as out, open(stderr, "wb") as err:
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
        tail = stderr.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"A worker exited with status {done.returncode}:\n{tail}")
    return stdout.read_text()


def _environment(folder: Path) -> dict[str, str]:
    """Return this environment without metricbus settings; backends write to `folder` only."""
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

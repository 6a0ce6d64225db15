"""Runs each case in a child process, and kills the processes that it leaves running."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil

from benchmarks.framework.child import RESULT_FILE
from benchmarks.framework.machine import ROOT
from benchmarks.framework.results import Measured

# This environment variable identifies all processes that a case has started.
MARK = "BENCHMARK_CASE"
QUIET_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
# Prefixes of the user's own settings, which must not affect the results.
REMOVED_SETTINGS = (
    "METRICBUS_",
    "MLFLOW_",
    "WANDB_",
    "PYTHONDONTWRITEBYTECODE",  # would recompile imports from a checkout in every process
)
FAILURE_LINES = 25
EXIT_TIMEOUT = 5.0  # seconds for the processes of a case to exit on their own


class CaseError(Exception):
    """Failure of a case; the message contains the last lines of its output."""


def run_case(case: str, module: str, *, quick: bool, keep: Path | None = None) -> Measured:
    """Measure the case in a child process; raise `CaseError` if it fails or times out.

    Files written by pyperf are copied to the folder `keep`, for analysis with pyperf's own tools.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _run(_command(case, module, folder, quick), folder, seconds=180 if quick else 900)
        if keep is not None:
            for file in (folder / "work").glob("*.pyperf.json"):
                shutil.copy(file, keep)
        return msgspec.json.decode((folder / RESULT_FILE).read_bytes(), type=Measured)


def _run(command: list[str], folder: Path, seconds: float) -> None:
    output = folder / "output.txt"
    (folder / "tmp").mkdir()
    with open(output, "wb") as log:
        child = subprocess.Popen(
            command, stdout=log, stdin=subprocess.DEVNULL, cwd=folder, env=_environment(folder)
        )
        in_time = False
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=seconds)
                in_time = True
        finally:
            child.kill()
            child.wait()
            _kill_leftovers(folder.name, EXIT_TIMEOUT if child.returncode == 0 else 0.0)
    if child.returncode != 0:
        reason = (
            f"exited with status {child.returncode}"
            if in_time
            else f"did not finish within {seconds:g} s"
        )
        raise CaseError(f"The case {reason}. Last lines of its output:\n{_last_lines(output)}")


def _command(case: str, module: str, folder: Path, quick: bool) -> list[str]:
    extent = "quick" if quick else "full"
    python = [sys.executable, "-W", "ignore", "-m", "benchmarks.framework.child"]
    return [*python, case, module, str(folder), extent]


def _environment(folder: Path) -> dict[str, str]:
    """Return the child's environment: no library settings, and temporary files in its folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(REMOVED_SETTINGS)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "TMPDIR": str(folder / "tmp"), MARK: folder.name}
    return {**kept, **QUIET_SETTINGS, **own}


def _kill_leftovers(mark: str, timeout: float) -> None:
    """Kill processes that still run after the timeout, since they would disturb the next case."""
    deadline = time.monotonic() + timeout
    while (leftovers := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in leftovers:
        with contextlib.suppress(psutil.NoSuchProcess):
            print(f"    killed a leftover process: {process.name()}", file=sys.stderr)
            process.kill()
    psutil.wait_procs(leftovers, timeout=5)


def _marked(mark: str) -> list[psutil.Process]:
    """Return the live processes that this case has started, including detached ones."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _last_lines(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-FAILURE_LINES:]
    return "\n".join(f"    {line}" for line in lines)

"""One child process for each case, and nothing of it that stays behind."""

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

from benchmarks.framework.child import ANSWER
from benchmarks.framework.machine import ROOT
from benchmarks.framework.results import Measured

MARK = "BENCHMARK_CASE"  # in the environment of all that a case starts, so that it can be found
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
FOREIGN = (  # settings of who runs this, which are not to be measured
    "METRICBUS_",
    "MLFLOW_",
    "WANDB_",
    "PYTHONDONTWRITEBYTECODE",  # or imports from a checkout would be compiled each time
)
LINES_OF_FAILURE = 25
PATIENCE = 5.0  # seconds for what a case started to end by itself


class CaseError(Exception):
    """A case failed; the message has the end of what it printed."""


def run_case(case: str, module: str, *, quick: bool, keep: Path | None = None) -> Measured:
    """Measures the case in a child; raises `CaseError` if it fails or takes far too long.

    What pyperf wrote is kept in a folder, for who wants to look at it by pyperf's own means.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _run(_command(case, module, folder, quick), folder, seconds=180 if quick else 900)
        if keep is not None:
            for file in (folder / "work").glob("*.pyperf.json"):
                shutil.copy(file, keep)
        return msgspec.json.decode((folder / ANSWER).read_bytes(), type=Measured)


def _run(command: list[str], folder: Path, seconds: float) -> None:
    said = folder / "said.txt"
    (folder / "tmp").mkdir()
    with open(said, "wb") as log:
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
            _sweep(folder.name, PATIENCE if child.returncode == 0 else 0.0)
    if child.returncode != 0:
        why = f"ended with {child.returncode}" if in_time else f"took more than {seconds:g} s"
        raise CaseError(f"it {why}; the last that it printed:\n{_end_of(said)}")


def _command(case: str, module: str, folder: Path, quick: bool) -> list[str]:
    extent = "quick" if quick else "full"
    ours = [sys.executable, "-W", "ignore", "-m", "benchmarks.framework.child"]
    return [*ours, case, module, str(folder), extent]


def _environment(folder: Path) -> dict[str, str]:
    """The child's: without settings of the libraries, with temporary files in its folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    place = {"PYTHONPATH": path, "TMPDIR": str(folder / "tmp"), MARK: folder.name}
    return {**kept, **QUIET, **place}


def _sweep(mark: str, patience: float) -> None:
    """Ends what is still there after so many seconds: it would disturb the next case."""
    deadline = time.monotonic() + patience
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            print(f"    left behind, killed: {process.name()}", file=sys.stderr)
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _marked(mark: str) -> list[psutil.Process]:
    """The live processes that this case has started, also those that went off on their own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _end_of(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LINES_OF_FAILURE:]
    return "\n".join(f"    {line}" for line in lines)

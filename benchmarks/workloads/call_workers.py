"""Starts pyperf worker processes together and measures them in turn."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyperf

from benchmarks.framework.harness import turns
from benchmarks.peers import SEPARATE_PEERS
from benchmarks.workloads.call_worker import PROCESSOR, WALL

_ROOT = Path(__file__).resolve().parents[2]
_EXIT_TIMEOUT_SECS = 240.0
# Pause after resuming a worker, for timers that expired while it was suspended.
_RESUME_SECS = 0.05
_LEAST_CALLS = 5


class WorkerResult(NamedTuple):
    """Results of one worker: seconds per call for each round, and counts of values."""

    wall: list[float]
    cpu: list[float]
    logged: int
    found: int  # -1 if the worker cannot count the values


class Worker:
    """Process that measures one arm in a new folder; its output files are next to the folder."""

    def __init__(self, arm: str, folder: Path, *, calls: int, rounds: int, uri: str = "") -> None:
        self.folder = folder
        self._arm = arm
        self._answer = folder.with_suffix(".pyperf.json")
        self._output = folder.with_suffix(".output.txt")
        python = str(SEPARATE_PEERS.get(arm.removesuffix(": row"), sys.executable))
        command = [
            python,
            "-W",
            "ignore",
            "-m",
            "benchmarks.workloads.call_worker",
            "--worker",
            "--warmups=1",
        ]
        command += [f"--values={rounds}", f"--loops={max(calls, _LEAST_CALLS)}", f"--arm={arm}"]
        command += [f"--folder={folder}", f"--answer={self._answer}", f"--uri={uri}"]
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=folder.parent,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                text=True,
            )

    def wait(self) -> None:
        """Wait until the worker has opened its arm or completed the requested measurement."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._fail()

    def proceed(self) -> None:
        """Request the next measurement, or the end after the last one."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)

    def measure(self, number: int) -> float:
        """Measure one round; the result is part of `suite`, so return a placeholder."""
        self.proceed()
        self.wait()
        return 0.0

    def freeze(self) -> None:
        """Suspend the worker and its descendants, so that they do not disturb other workers."""
        self._signal(psutil.Process.suspend)

    def thaw(self) -> None:
        """Resume the worker and its descendants."""
        self._signal(psutil.Process.resume)

    def _signal(self, send: Callable[[psutil.Process], None]) -> None:
        worker = psutil.Process(self._process.pid)
        for process in (worker, *worker.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                send(process)

    def suite(self) -> pyperf.BenchmarkSuite:
        """Wait for the worker to exit and return its benchmarks."""
        if self._process.wait(_EXIT_TIMEOUT_SECS) != 0:
            self._fail()
        return pyperf.BenchmarkSuite.load(str(self._answer))

    def end(self) -> None:
        """Kill the worker if it is still running."""
        self._process.kill()
        self._process.communicate()

    def _fail(self) -> None:
        self.end()
        output = self._output.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"The worker for arm {self._arm!r} failed:\n{output}")


def measure_together(workers: Mapping[str, Worker], rounds: int) -> dict[str, Any]:
    """Open all workers, measure them one at a time, close them, and return the suite of each arm.

    All other workers are suspended while one is measured.
    """
    try:
        for worker in workers.values():
            worker.wait()
            worker.freeze()
        arms = {arm: worker.measure for arm, worker in workers.items()}
        for number, arm, measure in turns(arms, rounds, warm_up=True):
            workers[arm].thaw()
            time.sleep(_RESUME_SECS)
            measure(number)
            workers[arm].freeze()
        for worker in workers.values():
            worker.thaw()
            worker.proceed()
        return {arm: worker.suite() for arm, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()


def result_of(suite: Any) -> WorkerResult:
    """Return the results in a worker's suite."""
    wall, processor = suite.get_benchmark(WALL), suite.get_benchmark(PROCESSOR)
    counts = wall.get_metadata()
    return WorkerResult(
        list(wall.get_values()), list(processor.get_values()), counts["logged"], counts["found"]
    )

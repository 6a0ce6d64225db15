"""Worker processes of pyperf that are opened together and measured in turn."""

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
from benchmarks.peers import APART
from benchmarks.workloads.call_worker import PROCESSOR, WALL

_ROOT = Path(__file__).resolve().parents[2]
_ENDS_WITHIN = 240.0
_WAKING_SECS = 0.05  # for timers that ran out while it stood still
_LEAST_CALLS = 5


class Seen(NamedTuple):
    """What one worker gave: seconds a call in each round, and counts of values."""

    wall: list[float]
    processor: list[float]
    logged: int
    found: int  # -1 where it is for others to count


class Worker:
    """One arm, in a process of its own with a new folder of its own; its answer lies beside it."""

    def __init__(self, arm: str, folder: Path, *, calls: int, rounds: int, uri: str = "") -> None:
        self.folder = folder
        self._arm = arm
        self._answer = folder.with_suffix(".pyperf.json")
        self._said = folder.with_suffix(".said.txt")
        python = str(APART.get(arm.removesuffix(": row"), sys.executable))
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
        with open(self._said, "wb") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=folder.parent,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                text=True,
            )

    def wait(self) -> None:
        """Until it has opened its arm, or has measured what it was told to."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._fail()

    def tell(self) -> None:
        """Has it go on."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)

    def take(self, number: int) -> float:
        """One round; what it gave is told at the end."""
        self.tell()
        self.wait()
        return 0.0

    def freeze(self) -> None:
        """Stops it and all that it has started, so that nothing of it disturbs another."""
        self._signal(psutil.Process.suspend)

    def thaw(self) -> None:
        """Has all of that go on."""
        self._signal(psutil.Process.resume)

    def _signal(self, send: Callable[[psutil.Process], None]) -> None:
        worker = psutil.Process(self._process.pid)
        for process in (worker, *worker.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                send(process)

    def suite(self) -> pyperf.BenchmarkSuite:
        """What it gave, once it has closed its arm."""
        if self._process.wait(_ENDS_WITHIN) != 0:
            self._fail()
        return pyperf.BenchmarkSuite.load(str(self._answer))

    def end(self) -> None:
        """Ends it, if it has not ended."""
        self._process.kill()
        self._process.communicate()

    def _fail(self) -> None:
        self.end()
        said = self._said.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the worker of {self._arm!r} failed:\n{said}")


def measure_together(workers: Mapping[str, Worker], rounds: int) -> dict[str, Any]:
    """The suite of each arm: opened together, measured one at a time, closed together.

    While one is measured, all others stand still.
    """
    try:
        for worker in workers.values():
            worker.wait()
            worker.freeze()
        arms = {arm: worker.take for arm, worker in workers.items()}
        for number, arm, take in turns(arms, rounds, warm_up=True):
            workers[arm].thaw()
            time.sleep(_WAKING_SECS)
            take(number)
            workers[arm].freeze()
        for worker in workers.values():
            worker.thaw()
            worker.tell()
        return {arm: worker.suite() for arm, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()


def seen_in(suite: Any) -> Seen:
    """The figures of a worker's suite."""
    wall, processor = suite.get_benchmark(WALL), suite.get_benchmark(PROCESSOR)
    told = wall.get_metadata()
    return Seen(
        list(wall.get_values()), list(processor.get_values()), told["logged"], told["found"]
    )

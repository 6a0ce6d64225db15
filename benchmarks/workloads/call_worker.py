"""Measures the calls of one arm: a worker process of pyperf.

A worker opens its arm once. Before each value it waits for a line, so that whoever has started
several of them measures them in turn, one at a time. When all values are taken the arm is closed,
and what it logged is counted as its backend has it.

    python -m benchmarks.workloads.call_worker --worker --loops N --warmups 1 --values N
        --arm ARM --folder FOLDER

It imports the standard library, pyperf and the arm, so that it runs in any environment.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyperf

from benchmarks.peers import quiet
from benchmarks.workloads.call_arms import Arm, Loop, opened

WALL, PROCESSOR = "wall", "processor"  # what the two benchmarks of an answer are named
_TELLS = ("hostname", "python_executable", "python_config_args", "python_cflags", "boot_time")


class Stopwatch:
    """Takes pyperf's values, each when a line comes in; answers each on `channel`."""

    def __init__(self, arm: Arm, channel: Any) -> None:
        self._arm = arm
        self._channel = channel
        self._step = 0
        self.processor: list[float] = []  # seconds a call, for each value

    @property
    def logged(self) -> int:
        """How many values have been logged, the warm-up's among them."""
        return self._step * self._arm.values

    def __call__(self, loops: int) -> float:
        """The wall time of so many calls, less that of the empty loop."""
        self.say("ready")
        sys.stdin.readline()
        steps = range(self._step, self._step + loops)
        gc.collect()
        none = min(_seconds(self._arm.empty, steps) for _ in range(3))
        warm = range(steps.stop, steps.stop + loops // 2)  # it stood still: caches are others'
        self._arm.loop(warm)
        steps = range(warm.stop, warm.stop + loops)
        some = _seconds(self._arm.loop, steps)
        self._step += len(warm) + loops
        self.processor.append((some[1] - none[1]) / loops)
        self._arm.rest()
        return some[0] - none[0]

    def say(self, word: str) -> None:
        """Answers."""
        print(word, file=self._channel, flush=True)


def _seconds(loop: Loop, steps: range) -> tuple[float, float]:
    """By the wall's clock, and by that of this thread."""
    wall, own = time.perf_counter_ns(), time.thread_time_ns()
    loop(steps)
    own, wall = time.thread_time_ns() - own, time.perf_counter_ns() - wall
    return wall / 1e9, own / 1e9


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what peers print goes where errors go
    quiet()
    runner = pyperf.Runner()
    for option in ("--arm", "--folder", "--uri", "--answer"):
        runner.argparser.add_argument(option, default="")
    args = runner.parse_args()
    with opened(args.arm, Path(args.folder), args.uri) as arm:
        watch = Stopwatch(arm, channel)
        bench = runner.bench_time_func(WALL, watch)
        watch.say("measured")
        sys.stdin.readline()
    found = arm.read_back() if arm.read_back else -1
    told = {"arm": args.arm, "logged": watch.logged, "found": found}
    answer(bench, watch.processor[-len(bench.get_values()) :], told).dump(args.answer)


def answer(bench: Any, processor: list[float], told: dict[str, Any]) -> Any:
    """Both benchmarks, with pyperf's metadata but for what tells whose machine it is."""
    (run,) = bench.get_runs()
    known = run.get_metadata()
    told |= {key: value for key, value in known.items() if key not in (*_TELLS, "name")}
    wall = pyperf.Run(
        run.values, warmups=run.warmups, metadata={**told, "name": WALL}, collect_metadata=False
    )
    own = pyperf.Run(processor, metadata={**told, "name": PROCESSOR}, collect_metadata=False)
    return pyperf.BenchmarkSuite([pyperf.Benchmark([wall]), pyperf.Benchmark([own])])


if __name__ == "__main__":
    main()

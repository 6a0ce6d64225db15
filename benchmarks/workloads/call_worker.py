"""Measures the calls of one arm in a pyperf worker process.

The worker opens its arm once. Before each measurement it waits for a line on standard input, so
that the parent process can measure several workers in turn. After the last measurement it closes
the arm and counts what the arm's backend contains.

    python -m benchmarks.workloads.call_worker --worker --loops N --warmups 1 --values N
        --arm ARM --folder FOLDER

The module imports only the standard library, pyperf and the arm, so that it runs in any
environment.
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

WALL, PROCESSOR = "wall", "processor"  # names of the two benchmarks
_IDENTIFYING = ("hostname", "python_executable", "python_config_args", "python_cflags", "boot_time")


class Stopwatch:
    """Timer for pyperf that measures on request; it reports its state on `channel`."""

    def __init__(self, arm: Arm, channel: Any) -> None:
        self._arm = arm
        self._channel = channel
        self._step = 0
        self.processor: list[float] = []  # seconds per call, for each measurement

    @property
    def logged(self) -> int:
        """The number of values logged, including the warm-up."""
        return self._step * self._arm.values

    def __call__(self, loops: int) -> float:
        """Return the wall time of `loops` calls in seconds, minus that of the empty loop."""
        self.report("ready")
        sys.stdin.readline()
        steps = range(self._step, self._step + loops)
        gc.collect()
        empty_wall, empty_processor = min(_seconds(self._arm.empty, steps) for _ in range(3))
        # The process was suspended while others ran, so its data is no longer in the caches.
        warm_up = range(steps.stop, steps.stop + loops // 2)
        self._arm.loop(warm_up)
        steps = range(warm_up.stop, warm_up.stop + loops)
        wall, processor = _seconds(self._arm.loop, steps)
        self._step += len(warm_up) + loops
        self.processor.append((processor - empty_processor) / loops)
        self._arm.rest()
        return wall - empty_wall

    def report(self, state: str) -> None:
        """Send one line to the parent process."""
        print(state, file=self._channel, flush=True)


def _seconds(loop: Loop, steps: range) -> tuple[float, float]:
    """Return the wall time and the processor time of this thread, in seconds."""
    wall, processor = time.perf_counter_ns(), time.thread_time_ns()
    loop(steps)
    processor, wall = time.thread_time_ns() - processor, time.perf_counter_ns() - wall
    return wall / 1e9, processor / 1e9


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    # Peers may print to standard output, which the parent process reads line by line.
    os.dup2(2, 1)
    quiet()
    runner = pyperf.Runner()
    for option in ("--arm", "--folder", "--uri", "--answer"):
        runner.argparser.add_argument(option, default="")
    args = runner.parse_args()
    with opened(args.arm, Path(args.folder), args.uri) as arm:
        watch = Stopwatch(arm, channel)
        bench = runner.bench_time_func(WALL, watch)
        watch.report("measured")
        sys.stdin.readline()
    found = arm.read_back() if arm.read_back else -1
    counts = {"arm": args.arm, "logged": watch.logged, "found": found}
    suite_of(bench, watch.processor[-len(bench.get_values()) :], counts).dump(args.answer)


def suite_of(bench: Any, processor: list[float], metadata: dict[str, Any]) -> Any:
    """Return both benchmarks, with pyperf's metadata except for what identifies the machine."""
    (run,) = bench.get_runs()
    excluded = (*_IDENTIFYING, "name")
    metadata |= {key: item for key, item in run.get_metadata().items() if key not in excluded}
    wall_run = pyperf.Run(
        run.values,
        warmups=run.warmups,
        metadata={**metadata, "name": WALL},
        collect_metadata=False,
    )
    processor_run = pyperf.Run(
        processor, metadata={**metadata, "name": PROCESSOR}, collect_metadata=False
    )
    return pyperf.BenchmarkSuite([pyperf.Benchmark([wall_run]), pyperf.Benchmark([processor_run])])


if __name__ == "__main__":
    main()

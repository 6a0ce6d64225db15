"""Runs one shape of the case `growth` in a worker process. Every run logs its values twice:

* Paced, in bursts of a thousand values, like a training loop that logs heavily. This measures the
  caller's time per value, the time of a deque under the same load, and the growth of the process.
* At full speed. This measures the time from the first `log()` until every sink has received
  everything. The loop is faster than the journal, so the queue fills and its `block` policy limits
  the loop.

The time to open the bus does not count. No value may be dropped, and all values are read back. The
worker process is `python -m benchmarks.workloads.growth_run SHAPE`. It works in the current
directory.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import msgspec
import psutil

from benchmarks.framework.fresh import run_fresh
from benchmarks.workloads.growth_load import BareDeque, Producers, RunShape
from benchmarks.workloads.ours import LOG, RUN, log_file, values_by_sink
from benchmarks.workloads.reading import complete
from metricbus import MetricBus, Report

# The cost of a bare deque does not depend on the number of values, so fewer are enough.
FLOOR_VALUES = 100_000
# Larger runs are verified by counting lines, which is faster than parsing them.
PARSED = 200_000


class RunCosts(msgspec.Struct, frozen=True):
    """Results of a run: nanoseconds per value, and the growth of the process in MB."""

    caller: float
    wall: float
    floor: float
    delivery: float
    paced_mb: float
    full_speed_mb: float
    read_back: str


def run_in_new_process(shape: RunShape, folder: Path) -> RunCosts:
    """Run `run_here` in a new interpreter that works in `folder`; return its result."""
    output = run_fresh(["-m", __name__, msgspec.json.encode(shape).decode()], folder)
    return msgspec.json.decode(output, type=RunCosts)


class Memory:
    """Maximum growth of this process since this object was created, in MB."""

    def __init__(self) -> None:
        gc.collect()
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.growth = 0.0

    def sample(self) -> None:
        """Take a sample, which takes about 10 µs."""
        rss = self._process.memory_info().rss
        self.growth = max(self.growth, (rss - self._before) / 1e6)


def run_here(shape: RunShape, folder: Path) -> RunCosts:
    """Run the workload in this process; raise unless every sink has received every value."""
    with log_file(folder / LOG):
        bus = MetricBus(id=RUN, sinks=shape.sinks, dir=folder, block_secs=600, close_timeout=600)
        producers = Producers(shape)
        producers.warm_up(bus)
        check(bus.flush(), producers.logged)

        paced = Memory()
        values = producers.produce(bus, paced.sample, paced=True)
        caller, wall = producers.spent(values)
        check(bus.flush(), producers.logged)
        paced.sample()

        full_speed = Memory()
        start = time.perf_counter_ns()
        values = producers.produce(bus, full_speed.sample, paced=False)
        check(bus.flush(), producers.logged)
        delivery = (time.perf_counter_ns() - start) / values
        full_speed.sample()

        check(bus.close(), producers.logged)
    found = read_back(folder, shape.sinks, producers.logged)
    floor = floor_of(shape)
    return RunCosts(caller, wall, floor, delivery, paced.growth, full_speed.growth, found)


def floor_of(shape: RunShape) -> float:
    """Return the processor time of the same paced loop into a deque, in nanoseconds per value.

    The deque is cleared between bursts.
    """
    floor = BareDeque()
    producers = Producers(msgspec.structs.replace(shape, values=min(shape.values, FLOOR_VALUES)))
    producers.warm_up(floor)
    values = producers.produce(floor, floor.calls.clear, paced=True)
    return producers.spent(values)[0]


def check(report: Report, logged: int) -> None:
    """Raise `RuntimeError` unless every sink has every value."""
    delivered = {sink.delivered for sink in report.sinks.values()}
    if not report.complete or report.logged != logged or delivered - {logged}:
        raise RuntimeError(f"Not every sink has all {logged:,} logged values:\n{report}")


def read_back(folder: Path, sinks: str, logged: int) -> str:
    """Count the values in each backend; raise if any are missing.

    Of a large run, only the lines of the CSV file are counted.
    """
    if logged > PARSED:
        found = {"csv": _count_lines(folder / RUN / "csv" / "metrics.csv") - 1}
    else:
        found = dict(values_by_sink(folder, sinks))
    for sink, values in found.items():
        complete(sink, values, logged)
    return f"{logged:,} of {logged:,}"


def _count_lines(file: Path) -> int:
    with open(file, "rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))


if __name__ == "__main__":
    costs = run_here(msgspec.json.decode(sys.argv[1], type=RunShape), Path.cwd())
    print(msgspec.json.encode(costs).decode())

"""One run of the case `growth`, in a process of its own: everything is logged twice.

* paced, in bursts of a thousand values, as a training does that logs hard. It gives the caller's
  time a value, beside a deque that is fed alike, and by how much the process grows;
* flat out. It gives the time from the first `log()` until every sink has everything. A loop that
  does nothing else is faster than the journal: the queue fills, and its `block` policy holds it.

What opening costs is left out, nothing may be dropped, and everything is read back. The process is
`python -m benchmarks.workloads.growth_run SHAPE`, in a folder of its own.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import msgspec
import psutil

from benchmarks.framework.fresh import fresh
from benchmarks.workloads.growth_load import Bare, Producers, Shape
from benchmarks.workloads.ours import LOG, RUN, log_file, values_by_sink
from benchmarks.workloads.reading import complete
from metricbus import MetricBus, Report

FLOOR_VALUES = 100_000  # at most: a bare deque has nothing that grows
PARSED = 200_000  # values; in larger runs the lines are counted, which takes seconds less


class Seen(msgspec.Struct, frozen=True):
    """What a run gave: nanoseconds a value, and the MB by which the process grew."""

    caller: float
    wall: float
    floor: float
    arrival: float
    paced_mb: float
    flat_out_mb: float
    read_back: str


def run_apart(shape: Shape, folder: Path) -> Seen:
    """Has a new interpreter do it, which works in the folder."""
    told = fresh(["-m", __name__, msgspec.json.encode(shape).decode()], folder)
    return msgspec.json.decode(told, type=Seen)


class Memory:
    """By how much this process has grown since it was made, in MB, at most."""

    def __init__(self) -> None:
        gc.collect()
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.grown = 0.0

    def look(self) -> None:
        """Takes a sample; some 10 µs."""
        rss = self._process.memory_info().rss
        self.grown = max(self.grown, (rss - self._before) / 1e6)


def run_here(shape: Shape, folder: Path) -> Seen:
    """The run of this process; raises if a sink does not have everything in the end."""
    with log_file(folder / LOG):
        bus = MetricBus(id=RUN, sinks=shape.sinks, dir=folder, block_secs=600, close_timeout=600)
        producers = Producers(shape)
        producers.warm_up(bus)
        check(bus.flush(), producers.logged)

        paced = Memory()
        values = producers.produce(bus, paced.look, paced=True)
        caller, wall = producers.spent(values)
        check(bus.flush(), producers.logged)
        paced.look()

        flat_out = Memory()
        start = time.perf_counter_ns()
        values = producers.produce(bus, flat_out.look, paced=False)
        check(bus.flush(), producers.logged)
        arrival = (time.perf_counter_ns() - start) / values
        flat_out.look()

        check(bus.close(), producers.logged)
    found = read_back(folder, shape.sinks, producers.logged)
    floor = floor_of(shape)
    return Seen(caller, wall, floor, arrival, paced.grown, flat_out.grown, found)


def floor_of(shape: Shape) -> float:
    """The same loop, paced alike, into a deque that is emptied between the bursts."""
    bare = Bare()
    producers = Producers(msgspec.structs.replace(shape, values=min(shape.values, FLOOR_VALUES)))
    producers.warm_up(bare)
    values = producers.produce(bare, bare.waiting.clear, paced=True)
    return producers.spent(values)[0]


def check(report: Report, logged: int) -> None:
    """`RuntimeError` unless every sink has every value."""
    delivered = {sink.delivered for sink in report.sinks.values()}
    if not report.complete or report.logged != logged or delivered - {logged}:
        raise RuntimeError(f"{logged:,} values were logged, but:\n{report}")


def read_back(folder: Path, sinks: str, logged: int) -> str:
    """Counts what each backend has, of a large run the CSV file alone; raises unless it is all."""
    if logged > PARSED:
        found = {"csv": _lines(folder / RUN / "csv" / "metrics.csv") - 1}
    else:
        found = dict(values_by_sink(folder, sinks))
    for sink, values in found.items():
        complete(sink, values, logged)
    return f"{logged:,} of {logged:,}"


def _lines(file: Path) -> int:
    with open(file, "rb") as pieces:
        return sum(piece.count(b"\n") for piece in iter(lambda: pieces.read(1 << 20), b""))


if __name__ == "__main__":
    seen = run_here(msgspec.json.decode(sys.argv[1], type=Shape), Path.cwd())
    print(msgspec.json.encode(seen).decode())

"""What grows: with the values in a run, with names, with sinks, with threads.

Each run is a process of its own (`work`), which opens a bus, warms it up and logs everything twice:

* paced, in bursts of a thousand values, as a training does that logs hard. It gives the caller's
  time a value, beside a deque that is fed alike, and by how much the process grows;
* flat out. It gives the time from the first `log()` until every sink has everything. A loop that
  does nothing else is faster than the journal: the queue fills, and its `block` policy holds it.

What opening costs is left out, nothing may be dropped, and everything is read back.
"""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import psutil

from benchmarks.cases.starting import fresh
from benchmarks.harness import Context, Figure, Result, Role, Target, ratio
from benchmarks.reading import (
    complete,
    log_values,
    mlflow_values,
    tensorboard_values,
    tidy_csv_values,
    wandb_values,
)
from metricbus import MetricBus, Report

PACE = 400_000  # values a second, all threads together
BURST = 1_000
A_STEP = 20
WARM_UP = 2_000
FLOOR_VALUES = 100_000  # at most: a bare deque has nothing that grows
PARSED = 200_000  # values; in larger runs lines and events are counted, which takes seconds less
BYTES_A_VALUE = 150  # in the journal, the CSV and the event file together, at most
FIVE = ("csv", "tensorboard", "logging", "wandb?mode=offline", "mlflow")
FILES = ",".join(FIVE[:2])

CALLER, WALL, ARRIVAL = "the caller, processor", "the caller, wall clock", "until all have it"
FLOOR = "deque.append, as the caller, processor"


class Shape(msgspec.Struct, frozen=True):
    """One run: how much is logged, and how; `together` means all values of a step in one call."""

    values: int
    names: int = A_STEP
    threads: int = 1
    sinks: str = FILES
    together: bool = True


class Seen(msgspec.Struct, frozen=True):
    """What a run gave: nanoseconds a value, and the MB by which the process grew."""

    caller: float
    wall: float
    floor: float
    arrival: float
    paced_mb: float
    flat_out_mb: float
    read_back: str


# A run.


class Bare:
    """The least that such a call can do in Python: append what it got, and when."""

    def __init__(self) -> None:
        self.waiting: deque[object] = deque()

    def log(self, name: Any, value: Any = None, *, step: int) -> None:
        """Keeps it; of a mapping, a copy."""
        what = name if type(name) is str else dict(name)
        self.waiting.append((what, value, step, time.time_ns()))


Logs: TypeAlias = MetricBus | Bare


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


class Producer:
    """The loop of one thread, with names and steps of its own; it adds up what its calls took."""

    def __init__(self, shape: Shape, number: int) -> None:
        prefix = f"t{number}" if shape.threads > 1 else "train"
        self.width = min(shape.names, A_STEP)
        self._names = shape.names
        self._rows = [
            {f"{prefix}/m{i % shape.names}": i / 7 for i in range(at, at + self.width)}
            for at in range(0, max(shape.names, 64 * self.width), self.width)
        ]
        self._share = shape.values // shape.threads
        self._pace = PACE / shape.threads
        self._together = shape.together
        self.step = 0
        self.processor = self.wall = 0

    def produce(self, bus: Logs, between: Callable[[], object], *, paced: bool) -> None:
        """Logs its share of the values; calls `between` after each burst, untimed."""
        self.processor = self.wall = 0
        due = time.perf_counter()
        for steps in self._bursts(self._share // self.width):
            self._log(bus, steps)
            between()
            due += len(steps) * self.width / self._pace
            if paced:
                time.sleep(max(0.0, due - time.perf_counter()))

    def warm_up(self, bus: Logs) -> None:
        """Has everything at work once, and every name used."""
        for steps in self._bursts(max(WARM_UP, self._names) // self.width):
            self._log(bus, steps)

    def _bursts(self, steps: int) -> Iterator[range]:
        end, length = self.step + steps, BURST // self.width
        for start in range(self.step, end, length):
            self.step = min(end, start + length)
            yield range(start, self.step)

    def _log(self, bus: Logs, steps: range) -> None:
        log, rows, count = bus.log, self._rows, len(self._rows)
        wall, processor = time.perf_counter_ns(), time.thread_time_ns()
        if self._together:
            for step in steps:
                log(rows[step % count], step=step)
        else:
            for step in steps:
                for name, value in rows[step % count].items():
                    log(name, value, step=step)
        self.processor += time.thread_time_ns() - processor
        self.wall += time.perf_counter_ns() - wall


class Producers:
    """All threads of a run; the first one looks at the memory."""

    def __init__(self, shape: Shape) -> None:
        self._all = [Producer(shape, number) for number in range(shape.threads)]

    @property
    def logged(self) -> int:
        """Values so far."""
        return sum(one.step * one.width for one in self._all)

    def warm_up(self, bus: Logs) -> None:
        """In turn."""
        for one in self._all:
            one.warm_up(bus)

    def produce(self, bus: Logs, between: Callable[[], object], *, paced: bool) -> int:
        """All at a time; returns how many values that were."""
        before = self.logged
        first, *others = self._all
        with ThreadPoolExecutor(max_workers=len(self._all)) as threads:
            running = [threads.submit(one.produce, bus, int, paced=paced) for one in others]
            first.produce(bus, between, paced=paced)
            for one in running:
                one.result()
        return self.logged - before

    def spent(self, values: int) -> tuple[float, float]:
        """Nanoseconds a value inside the calls, all threads together: processor and wall clock."""
        processor = sum(one.processor for one in self._all)
        return processor / values, sum(one.wall for one in self._all) / values


def work(shape: Shape, folder: Path) -> Seen:
    """The run of this process; raises if a sink does not have everything in the end."""
    log_to(folder / "log.txt")
    bus = MetricBus(id="run", sinks=shape.sinks, dir=folder, block_secs=600, close_timeout=600)
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
    found = read_back(folder, shape.sinks.split(","), producers.logged)
    floor = floor_of(shape)
    return Seen(caller, wall, floor, arrival, paced.grown, flat_out.grown, found)


def floor_of(shape: Shape) -> float:
    """The same loop, paced alike, into a deque that is emptied between the bursts."""
    bare = Bare()
    producers = Producers(msgspec.structs.replace(shape, values=min(shape.values, FLOOR_VALUES)))
    producers.warm_up(bare)
    values = producers.produce(bare, bare.waiting.clear, paced=True)
    return producers.spent(values)[0]


def log_to(file: Path) -> None:
    """Has the sink `logging` write there."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logger = logging.getLogger("metricbus")
    logger.addHandler(handler)
    logger.setLevel("INFO")


def check(report: Report, logged: int) -> None:
    """`RuntimeError` unless every sink has every value."""
    delivered = {sink.delivered for sink in report.sinks.values()}
    if not report.complete or report.logged != logged or delivered - {logged}:
        raise RuntimeError(f"{logged:,} values were logged, but:\n{report}")


def read_back(folder: Path, sinks: Iterable[str], logged: int) -> str:
    """Counts what each backend has; raises unless it is all."""
    readers: dict[str, Callable[[], int]] = {
        "csv": lambda: tidy_csv_values(folder / "run/csv/metrics.csv"),
        "tensorboard": lambda: tensorboard_values(folder / "run"),
        "logging": lambda: log_values(folder / "log.txt"),
        "wandb": lambda: wandb_values(folder / "run"),
        "mlflow": lambda: mlflow_values(f"sqlite:///{folder}/mlflow.db"),
    }
    if logged > PARSED:
        readers["csv"] = lambda: _lines(folder / "run/csv/metrics.csv") - 1
        del readers["tensorboard"]
    for sink in sinks:
        kind = sink.partition("?")[0]
        if kind in readers:
            complete(sink, readers[kind](), logged)
    return f"{logged:,} of {logged:,}"


def _lines(file: Path) -> int:
    with open(file, "rb") as pieces:
        return sum(piece.count(b"\n") for piece in iter(lambda: pieces.read(1 << 20), b""))


# The results.


def measure(context: Context) -> list[Result]:
    """The cost of a value as everything grows, and the memory of the training process."""
    quick = context.quick
    sizes = [10**3, 10**4] if quick else [10**4, 10**5, 10**6, 10**7]
    values, many = context.pick(10**5, 2_000), context.pick(10**4, 1_000)
    shapes = {size: Shape(size) for size in sizes if _has_room(context, size)}
    by_size = _run(context, "values", shapes, lambda size: {10**6: 2, 10**7: 1}.get(size, 5))
    names = [1, 100, 1_000] if quick else [1, 10, 100, 1_000, 10_000]
    by_names = {count: Shape(values, names=count, together=False) for count in names}
    threads = [1, 4] if quick else [1, 2, 4, 8, 16]
    by_threads = {count: Shape(values, threads=count, together=False) for count in threads}
    sinks = range(1, context.pick(5, 3) + 1)
    by_sinks = {count: Shape(many, sinks=",".join(FIVE[:count])) for count in sinks}
    return [
        _costs("values", "values in one run", by_size, _MAPPING + _LARGE),
        _memory(by_size),
        _costs("names", "names", _run(context, "names", by_names), _NAMES, beside=100),
        _costs("sinks", "sinks", _run(context, "sinks", by_sinks), _MAPPING + _SINKS),
        _costs("threads", "threads", _run(context, "threads", by_threads), _SINGLE),
    ]


_ABOUT = (
    f"Caller: inside `log()`, at {PACE:,} values a second in bursts of {BURST:,}, which is less "
    "than the journal takes, so nothing has to wait; all threads together. Until all have it: "
    "flat out, from the first `log()` until every sink has everything; there the queue fills, and "
    "`overflow=block` holds the loop. Opening is left out, the time to notice that all is done is "
    "not: of few values it is most. "
)
_LARGE = (
    f"Beyond {PARSED // 2:,} values, the lines are counted in the CSV file; "
    "for TensorBoard's, the sink's own count is taken. "
)
_MAPPING = "One mapping of 20 a step. "
_SINGLE = "One value a call, 20 a step; csv and tensorboard. "
_NAMES = (
    _SINGLE + "Steps of a single name have one value, those of ten have ten. What the first use of "
    "a name costs is left out, with the warm-up. "
)
_SINKS = f"In this order: {', '.join(FIVE)}. All of them share the processor that is left. "


def _run(
    context: Context,
    what: str,
    shapes: Mapping[int, Shape],
    rounds: Callable[[int], int] = lambda _: 2,
) -> dict[int, list[Seen]]:
    """Each shape in a process of its own, in rounds there and back; some sit out later rounds."""
    seen: dict[int, list[Seen]] = {at: [] for at in shapes}
    for number in range(context.pick(max(map(rounds, shapes)), 1)):
        for at in list(shapes)[:: -1 if number % 2 else 1]:
            if number < rounds(at):
                context.tell(f"{what}: {at:,}, round {number + 1}")
                folder = context.place(f"growth-{what}")
                shape = msgspec.json.encode(shapes[at]).decode()
                told = fresh(["-m", __name__, shape], folder)
                seen[at].append(msgspec.json.decode(told, type=Seen))
                shutil.rmtree(folder)
    return seen


def _costs(
    id: str, x: str, seen: Mapping[int, list[Seen]], text: str, beside: int | None = None
) -> Result:
    """Four lines; and targets for the far end beside the near one, or beside another place."""
    figures = _figures(
        [
            (FLOOR, "floor", lambda one: one.floor),
            (CALLER, "ours", lambda one: one.caller),
            (WALL, "ours", lambda one: one.wall),
            (ARRIVAL, "ours", lambda one: one.arrival),
        ],
        seen,
    )
    *_, before, most = seen
    few = beside or min(seen)
    pairs = [(CALLER, few), (ARRIVAL, few), (ARRIVAL, before)]
    if id == "sinks":  # each has work of its own to do, which is not the caller's
        pairs = [(CALLER, few)]
    at = {(figure.name, figure.at): figure for figure in figures}
    targets = [
        Target(f"{name}: {most:,} {x} beside {less:,}", ratio(at[name, most], at[name, less]), 1.1)
        for name, less in dict.fromkeys(pairs)
    ]
    title = f"The cost of a value by the number of {x}"
    return Result(f"growth-{id}", title, text + _ABOUT, "ns", figures, targets, chart="lines", x=x)


def _memory(seen: Mapping[int, list[Seen]]) -> Result:
    paced, flat_out = "paced", "flat out: the queue is full"
    figures = _figures(
        [
            (paced, "ours", lambda one: one.paced_mb),
            (flat_out, "ours", lambda one: one.flat_out_mb),
        ],
        seen,
    )
    most = list(seen)[-1]
    targets = [
        Target(f"{figure.name}: growth at {most:,} values", figure.spread[1], 20.0, "MB")
        for figure in figures
        if figure.at == most
    ]
    text = (
        "Resident memory of the training process: by how much it grew at most after opening and "
        "warming up, before the same was logged again flat out, and then by how much it grew "
        "beyond that. The queue is bounded, by `queue_size` and `queue_bytes`."
    )
    return Result(
        "growth-memory",
        "Memory of the training process by the number of values",
        text,
        "MB",
        figures,
        targets,
        chart="lines",
        x="values in one run",
    )


def _figures(
    lines: Iterable[tuple[str, Role, Callable[[Seen], float]]], seen: Mapping[int, list[Seen]]
) -> list[Figure]:
    return [
        Figure(name, [pick(one) for one in runs], role, at=at, complete=runs[0].read_back)
        for name, role, pick in lines
        for at, runs in seen.items()
    ]


def _has_room(context: Context, size: int) -> bool:
    """Whether the disk has twice what a run of this size writes; a run logs all values twice."""
    fits = shutil.disk_usage(context.folder).free > 2 * 2 * size * BYTES_A_VALUE
    if not fits:
        context.tell(f"{size:,} values are left out: the disk has no room for them")
    return fits


if __name__ == "__main__":
    seen = work(msgspec.json.decode(sys.argv[1], type=Shape), Path.cwd())
    print(msgspec.json.encode(seen).decode())

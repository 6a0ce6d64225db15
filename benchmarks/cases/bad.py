"""What people fear: a sink that is down, a slow disk, many names, pictures, NaN, a full queue.

Every run has a process of its own, whose memory is watched from outside. A trouble is compared with
the same loop without it. The counts of every run must add up, and are read back.
"""

from __future__ import annotations

import csv
import logging
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

import metricbus
from benchmarks.broken import SwitchedSink, refusing_server, slow_disk
from benchmarks.cases.latency import Worker
from benchmarks.harness import Context, Figure, Result, interleaved, ratios
from benchmarks.reading import complete, journal_values
from metricbus import Image, MetricBus, Report

NAMES = [f"train/metric{i}" for i in range(20)]
MANY_NAMES = [f"layer{i // 100}/unit{i % 100}/gradient" for i in range(10_000)]
PICTURE = np.random.default_rng(0).integers(0, 256, (1024, 1024, 4), dtype=np.uint8)  # 4 MiB
STEP_SECS = 0.05  # a training step that waits for a device, where pictures are logged
DISK = 1e6  # bytes a second
SHORT_QUEUE = 1_000
PATIENCE = 60.0
LOOK_EVERY = 0.005

Log = Callable[[MetricBus, int], int]


class Plan(NamedTuple):
    """One run: its loop, its bus, and what is wrong.

    `loop` logs about so many values and returns how many it were. `beside` names the run without
    the trouble, and is empty for such a run itself. `down` is how the name of the sink begins that
    is down. `drops` says whether values are lost: they never may, they must (or nothing was wrong
    with the run), or they may.
    """

    name: str
    beside: str
    loop: Log
    values: int
    open: Callable[[ExitStack, Path], MetricBus]
    down: str = ""
    drops: bool | None = False


class Outcome(NamedTuple):
    """What one run gave; memory is in bytes beyond what the process had before the loop."""

    rate: float
    peak: int
    left: int
    report: Report


# The loops


def log_scalars(bus: MetricBus, values: int, names: list[str] = NAMES, value: float = 0.5) -> int:
    """A value for each name a step, as fast as possible."""
    steps = math.ceil(values / len(names))
    for step in range(steps):
        for name in names:
            bus.log(name, value, step=step)
    return steps * len(names)


def log_many_names(bus: MetricBus, values: int) -> int:
    """10,000 values a step, each with a name of its own."""
    return log_scalars(bus, values, MANY_NAMES)


def log_nan(bus: MetricBus, values: int) -> int:
    """Every value is NaN."""
    return log_scalars(bus, values, value=math.nan)


def log_steps(bus: MetricBus, values: int, last: Callable[[], object] = float) -> int:
    """21 values a step, which takes a while."""
    steps = math.ceil(values / (len(NAMES) + 1))
    for step in range(steps):
        time.sleep(STEP_SECS)
        for name in NAMES:
            bus.log(name, 0.5, step=step)
        bus.log("sample", last(), step=step)
    return steps * (len(NAMES) + 1)


def log_pictures(bus: MetricBus, values: int) -> int:
    """The same, the 21st of them a picture."""
    return log_steps(bus, values, lambda: Image(PICTURE))


# The buses


def open_bus(exits: ExitStack, folder: Path, **settings: Any) -> MetricBus:
    """Nothing is wrong."""
    return MetricBus(dir=folder, **settings)


def open_with_object(exits: ExitStack, folder: Path, *, up: bool) -> MetricBus:
    """Two sinks in this process, one of which may be down for the whole run."""
    _Running.switched = SwitchedSink(up=up)
    return MetricBus(dir=folder, sinks=["csv", _Running.switched])


def open_with_dead_server(exits: ExitStack, folder: Path) -> MetricBus:
    """Two sinks in the delivery process; the server of one of them refuses connections."""
    server = exits.enter_context(refusing_server())
    sinks = f"csv,mlflow+{server}"
    return MetricBus(dir=folder, sinks=sinks, delivery="process", linger_secs=1)


def open_on_slow_disk(exits: ExitStack, folder: Path, **settings: Any) -> MetricBus:
    """The journal alone, on a disk that takes its time."""
    exits.enter_context(slow_disk(DISK))
    return MetricBus(dir=folder, sinks="", **settings)


def plans(context: Context) -> list[Plan]:
    """The runs without trouble, each before the troubles that are compared with it."""
    return [
        *_with_sinks_in_threads(context.pick(300_000, 10_000)),
        *_with_delivery_process(context.pick(300_000, 10_000)),
        *_with_slow_disk(context.pick(120_000, 4_000), context.pick(40_000, 4_000)),
        *_with_pictures(context.pick(30, 3) * (len(NAMES) + 1)),
    ]


def _with_sinks_in_threads(values: int) -> list[Plan]:
    floor, up = "two sinks in threads", partial(open_with_object, up=True)
    down = partial(open_with_object, up=False)
    return [
        Plan(floor, "", log_scalars, values, up),
        Plan("a sink is down", floor, log_scalars, values, down, down="SwitchedSink"),
        Plan("10,000 names", floor, log_many_names, values, up),
        Plan("every value is NaN", floor, log_nan, values, up),
    ]


def _with_delivery_process(values: int) -> list[Plan]:
    floor, up = "csv in the delivery process", partial(open_bus, sinks="csv", delivery="process")
    dead = "csv, and MLflow's server is down"
    return [
        Plan(floor, "", log_scalars, values, up),
        Plan(dead, floor, log_scalars, values, open_with_dead_server, down="mlflow"),
    ]


def _with_slow_disk(values: int, fewer: int) -> list[Plan]:
    floor, full = "the journal alone", "a queue of 1,000"
    short = partial(open_bus, sinks="", queue_size=SHORT_QUEUE)
    plans = [
        Plan(floor, "", log_scalars, values, partial(open_bus, sinks="")),
        Plan("a disk at 1 MB/s", floor, log_scalars, values, open_on_slow_disk),
        Plan(full, "", log_scalars, fewer, short),
    ]
    for overflow in ("block", "drop_newest", "drop_oldest"):
        opened = partial(open_on_slow_disk, queue_size=SHORT_QUEUE, overflow=overflow)
        drops = overflow != "block"
        name = f"{full} is full, overflow={overflow}"
        plans.append(Plan(name, full, log_scalars, fewer, opened, drops=drops))
    return plans


def _with_pictures(values: int) -> list[Plan]:
    floor, picture = "steps of 50 ms", "a 4-MiB picture every step"
    waits, drops = partial(open_bus, sinks="csv"), "drop_newest"
    lossy = partial(open_bus, sinks="csv", overflow=drops)
    return [
        Plan(floor, "", log_steps, values, waits),
        Plan(picture, floor, log_pictures, values, waits),
        Plan(f"{picture}, overflow={drops}", floor, log_pictures, values, lossy, drops=None),
    ]


# In a run's process


class _Running:
    """What a run's process keeps between its parts."""

    plan: Plan
    bus: MetricBus
    switched: SwitchedSink
    exits = ExitStack()
    logged = 0


def _open(plan: Plan, folder: Path) -> None:
    """Opens the bus and has everything work once."""
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO)
    _Running.plan = plan
    _Running.bus = plan.open(_Running.exits, folder)
    _Running.logged = log_scalars(_Running.bus, 1)
    _settle()


def _loop() -> float:
    """Values a second, as the training sees it."""
    start = time.perf_counter()
    logged = _Running.plan.loop(_Running.bus, _Running.plan.values)
    seconds = time.perf_counter() - start
    _Running.logged += logged
    return logged / seconds


def _settle() -> None:
    """Waits until all that works has everything, and what is down has been tried."""
    deadline = time.monotonic() + PATIENCE
    while not _is_settled(report := _Running.bus.stats()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not everything arrives:\n{report}")
        time.sleep(0.01)


def _is_settled(report: Report) -> bool:
    return not report.waiting and all(
        sink.error if _is_down(name) else not sink.pending for name, sink in report.sinks.items()
    )


def _is_down(sink: str) -> bool:
    return bool(_Running.plan.down) and sink.startswith(_Running.plan.down)


def _close() -> Report:
    """Ends the run; there is no use in waiting for what is down."""
    with _Running.exits:
        _settle()
        return _Running.bus.close(timeout=1 if _Running.plan.down else PATIENCE)


def _check() -> None:
    """Every value that was logged is where the report says, or this raises."""
    bus, plan, report = _Running.bus, _Running.plan, _Running.bus.stats()
    if bus.folder is None:
        raise RuntimeError("the run has no folder")
    complete("the report", report.logged, _Running.logged)
    complete("in the end", report.journalled + report.dropped, _Running.logged)
    pictures = len(metricbus.read(bus.folder).media())
    complete("the journal", journal_values(bus.folder) + pictures, report.journalled)
    if plan.drops is not None and bool(report.dropped) != plan.drops:
        raise RuntimeError(f"{plan.name}: {report.dropped:,} values were dropped\n{report}")
    for name, sink in report.sinks.items():
        expected = (0, report.journalled) if _is_down(name) else (report.journalled, 0)
        if (sink.delivered, sink.pending) != expected:
            raise RuntimeError(f"{plan.name}: {name} was to have {expected}:\n{report}")
        if name == "csv":
            complete(name, _rows(bus.folder / "csv" / "metrics.csv"), sink.delivered)
        if name == "SwitchedSink":
            complete(name, _Running.switched.values, sink.delivered)


def _rows(file: Path) -> int:
    with open(file, newline="", encoding="utf-8") as lines:
        return sum(1 for _ in csv.DictReader(lines))


# The measurement


def measure(context: Context) -> list[Result]:
    every = plans(context)
    outcomes: dict[str, list[Outcome]] = {plan.name: [] for plan in every}

    def run(plan: Plan, number: int) -> float:
        context.tell(f"round {number + 1}: {plan.name}")
        outcomes[plan.name].append(_run(plan, context.place("bad")))
        return outcomes[plan.name][-1].rate

    interleaved({plan.name: partial(run, plan) for plan in every}, rounds=1)
    rates = [_figure(plan, outcomes[plan.name], _rate) for plan in every]
    return [_slowdown(every, rates), _throughput(rates), _memory(every, outcomes)]


def _run(plan: Plan, folder: Path) -> Outcome:
    with Worker() as worker:
        process = worker.process
        worker.do(_open, plan, folder)
        before = process.memory_info().rss
        looping = worker.begin(_loop)
        peak = _peak(process, looping)
        closing = worker.begin(_close)
        peak = max(peak, _peak(process, closing), left := process.memory_info().rss)
        worker.do(_check)
        return Outcome(looping.result(), peak - before, left - before, closing.result())


def _peak(process: psutil.Process, work: Future[Any]) -> int:
    """The most memory that is seen until the work is done."""
    peak = process.memory_info().rss
    while not work.done():
        peak = max(peak, process.memory_info().rss)
        time.sleep(LOOK_EVERY)
    work.result()
    return peak


# What is told


def _rate(outcome: Outcome) -> float:
    return outcome.rate


def _peak_mb(outcome: Outcome) -> float:
    return outcome.peak / 1e6


def _figure(plan: Plan, seen: list[Outcome], sample: Callable[[Outcome], float]) -> Figure:
    report = seen[-1].report
    return Figure(
        plan.name,
        [sample(one) for one in seen],
        "ours" if plan.beside else "floor",
        complete=f"{report.logged:,} of {report.logged:,}",
        note=_counts(report),
    )


def _counts(report: Report) -> str:
    """Where the last round's values are."""
    words = [f"{report.journalled:,} journalled"]
    if report.dropped:
        words.append(f"{report.dropped:,} dropped")
    for name, sink in report.sinks.items():
        kind = name.partition("+")[0].partition(":")[0]
        words.append(
            f"{kind}: {sink.pending:,} pending" if sink.pending else f"{kind}: {sink.delivered:,}"
        )
    return "; ".join(words)


def _slowdown(every: list[Plan], rates: list[Figure]) -> Result:
    by_name = {figure.name: figure for figure in rates}
    return Result(
        "bad",
        "How many times as long the loop takes when something is wrong",
        _TEXT,
        "x",
        [
            Figure(
                plan.name,
                ratios(by_name[plan.beside], by_name[plan.name]),
                "ours",
                complete=by_name[plan.name].complete,
                note=f"beside: {plan.beside}; {by_name[plan.name].note}",
            )
            for plan in every
            if plan.beside
        ],
    )


def _throughput(rates: list[Figure]) -> Result:
    return Result(
        "bad-throughput",
        "What the loop logs meanwhile",
        "The same runs, in values a second as the training sees it, those that are dropped "
        "included. The floors are the loops without trouble. Where pictures are logged, a step has "
        f"{len(NAMES)} numbers and one picture.",
        "values/s",
        rates,
        better="more",
    )


def _memory(every: list[Plan], outcomes: dict[str, list[Outcome]]) -> Result:
    figures = []
    for plan in every:
        seen = outcomes[plan.name]
        left = statistics.median(one.left for one in seen) / 1e6
        figure = _figure(plan, seen, _peak_mb)
        figures.append(
            Figure(plan.name, figure.samples, figure.role, note=f"{left:.1f} MB at the end")
        )
    return Result(
        "bad-memory",
        "What the training process takes in memory at most",
        "The same runs: the most that the process had from the beginning of the loop until the "
        "end of the run (resident memory, looked at from outside every "
        f"{LOOK_EVERY * 1e3:.0f} ms), beyond what it had before the loop.",
        "MB",
        figures,
    )


_TEXT = f"""\
Each run logs as fast as it can, and everything it logged is counted at the end: journalled or
dropped, and for each sink delivered or pending. The counts are compared with the calls that were
made, with the journal and with the CSV file; a run whose counts do not add up is no result.

- A sink that is down: one in this process that says so at each attempt (beside CSV, in threads; the
  floor has the same two sinks, both up); an MLflow server whose port refuses connections, seen from
  the delivery process. What it did not get is pending, and in the journal. It has failed at least
  once before the loop begins.
- The slow disk takes {DISK / 1e6:.0f} MB/s: `os.write` of the process waits for its share, 4 KiB
  at a time, with the interpreter let go, as a write to a real one would. The journal is written
  there, and there is no sink. The queue, of the default size, takes up what it can.
- A full queue: the same disk, a queue of {SHORT_QUEUE:,} calls, and each policy of `overflow`.
- A picture: {PICTURE.nbytes >> 20} MiB of noise, which no encoder makes smaller, at every step of
  {STEP_SECS * 1e3:.0f} ms (a sleep: the training waits for a device). At most 64 MiB wait to be
  encoded; beyond that, `overflow` decides: to wait (the default), or to drop."""

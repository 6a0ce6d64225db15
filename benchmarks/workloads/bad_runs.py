"""The runs of the case `bad`: what is logged, to which bus, and what is wrong with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.framework.harness import Context
from benchmarks.workloads.broken import SwitchedSink, refusing_server, slow_disk
from metricbus import Image, MetricBus

NAMES = [f"train/metric{i}" for i in range(20)]
MANY_NAMES = [f"layer{i // 100}/unit{i % 100}/gradient" for i in range(10_000)]
PICTURE = np.random.default_rng(0).integers(0, 256, (1024, 1024, 4), dtype=np.uint8)  # 4 MiB
STEP_SECS = 0.05  # a training step that waits for a device, where pictures are logged
DISK = 1e6  # bytes a second
SHORT_QUEUE = 1_000

Log = Callable[[MetricBus, int], int]


class Opened(NamedTuple):
    """A bus, and the sink object that it has, if it has one."""

    bus: MetricBus
    switched: SwitchedSink | None = None


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
    open: Callable[[ExitStack, Path], Opened]
    down: str = ""
    drops: bool | None = False
    quick: bool = True  # whether a quick run has it


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


def open_bus(exits: ExitStack, folder: Path, **settings: Any) -> Opened:
    """Nothing is wrong."""
    return Opened(MetricBus(dir=folder, **settings))


def open_with_object(exits: ExitStack, folder: Path, *, up: bool) -> Opened:
    """Two sinks in this process, one of which may be down for the whole run."""
    switched = SwitchedSink(up=up)
    return Opened(MetricBus(dir=folder, sinks=["csv", switched]), switched)


def open_with_dead_server(exits: ExitStack, folder: Path) -> Opened:
    """Two sinks in the delivery process; the server of one of them refuses connections."""
    server = exits.enter_context(refusing_server())
    sinks = f"csv,mlflow+{server}"
    return Opened(MetricBus(dir=folder, sinks=sinks, delivery="process", linger_secs=1))


def open_on_slow_disk(exits: ExitStack, folder: Path, **settings: Any) -> Opened:
    """The journal alone, on a disk that takes its time."""
    exits.enter_context(slow_disk(DISK))
    return Opened(MetricBus(dir=folder, sinks="", **settings))


def plans(context: Context) -> list[Plan]:
    """The runs without trouble, each before the troubles that are compared with it.

    A quick run leaves out what MLflow is needed for, and variants.
    """
    every = [
        *_with_sinks_in_threads(context.pick(300_000, 10_000)),
        *_with_delivery_process(context.pick(300_000, 10_000)),
        *_with_slow_disk(context.pick(120_000, 4_000), context.pick(40_000, 4_000)),
        *_with_pictures(context.pick(30, 3) * (len(NAMES) + 1)),
    ]
    return [plan for plan in every if plan.quick or not context.quick]


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
        Plan(floor, "", log_scalars, values, up, quick=False),
        Plan(dead, floor, log_scalars, values, open_with_dead_server, "mlflow", quick=False),
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
        quick = overflow == "drop_oldest"
        plans.append(Plan(name, full, log_scalars, fewer, opened, drops=drops, quick=quick))
    return plans


def _with_pictures(values: int) -> list[Plan]:
    floor, picture = "steps of 50 ms", "a 4-MiB picture every step"
    waits, drops = partial(open_bus, sinks="csv"), "drop_newest"
    lossy, dropping = partial(open_bus, sinks="csv", overflow=drops), f"{picture}, overflow={drops}"
    return [
        Plan(floor, "", log_steps, values, waits),
        Plan(picture, floor, log_pictures, values, waits),
        Plan(dropping, floor, log_pictures, values, lossy, drops=None, quick=False),
    ]

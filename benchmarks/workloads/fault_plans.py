"""Plans for the case `faults`: which loop runs on which bus, and with which fault."""

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
IMAGE = np.random.default_rng(0).integers(0, 256, (1024, 1024, 4), dtype=np.uint8)  # 4 MiB
# Duration of a step in runs that log images. The sleep stands for the wait for a device.
STEP_SECS = 0.05
DISK = 1e6  # bytes per second
SHORT_QUEUE = 1_000

Log = Callable[[MetricBus, int], int]


class Opened(NamedTuple):
    """An open bus, and its sink object if the plan has one."""

    bus: MetricBus
    switched: SwitchedSink | None = None


class Plan(NamedTuple):
    """One run: its loop, its bus, and its fault.

    `loop` logs at least `values` values and returns the number logged. `baseline` names the
    fault-free plan to compare with; it is empty for a fault-free plan. `down` is a prefix of the
    name of the sink that is down. `drops` is True if the run must drop values, False if it must
    not, and None if either is acceptable.
    """

    name: str
    baseline: str
    loop: Log
    values: int
    open: Callable[[ExitStack, Path], Opened]
    down: str = ""
    drops: bool | None = False
    quick: bool = True  # whether quick runs include it


# Loops


def log_scalars(bus: MetricBus, values: int, names: list[str] = NAMES, value: float = 0.5) -> int:
    """Log one value per name and step, as fast as possible; return the number of values."""
    steps = math.ceil(values / len(names))
    for step in range(steps):
        for name in names:
            bus.log(name, value, step=step)
    return steps * len(names)


def log_many_names(bus: MetricBus, values: int) -> int:
    """Log 10,000 values per step, each under a different name."""
    return log_scalars(bus, values, MANY_NAMES)


def log_nan(bus: MetricBus, values: int) -> int:
    """Log NaN only."""
    return log_scalars(bus, values, value=math.nan)


def log_steps(bus: MetricBus, values: int, make_last: Callable[[], object] = float) -> int:
    """Log 21 values per step, with a pause of `STEP_SECS` before each step."""
    steps = math.ceil(values / (len(NAMES) + 1))
    for step in range(steps):
        time.sleep(STEP_SECS)
        for name in NAMES:
            bus.log(name, 0.5, step=step)
        bus.log("sample", make_last(), step=step)
    return steps * (len(NAMES) + 1)


def log_images(bus: MetricBus, values: int) -> int:
    """Log 20 numbers and one image per step, with the same pauses as `log_steps`."""
    return log_steps(bus, values, lambda: Image(IMAGE))


# Buses


def open_bus(exits: ExitStack, folder: Path, **settings: Any) -> Opened:
    """Open a bus without a fault."""
    return Opened(MetricBus(dir=folder, **settings))


def open_with_object(exits: ExitStack, folder: Path, *, up: bool) -> Opened:
    """Open a bus with two sinks in this process; one of them is down unless `up` is set."""
    switched = SwitchedSink(up=up)
    return Opened(MetricBus(dir=folder, sinks=["csv", switched]), switched)


def open_with_dead_server(exits: ExitStack, folder: Path) -> Opened:
    """Open a bus with two sinks in the delivery process; one sink's server refuses connections."""
    server = exits.enter_context(refusing_server())
    sinks = f"csv,mlflow+{server}"
    return Opened(MetricBus(dir=folder, sinks=sinks, delivery="process", linger_secs=1))


def open_on_slow_disk(exits: ExitStack, folder: Path, **settings: Any) -> Opened:
    """Open a bus that only writes the journal, on a slow disk."""
    exits.enter_context(slow_disk(DISK))
    return Opened(MetricBus(dir=folder, sinks="", **settings))


def plans(context: Context) -> list[Plan]:
    """Return all plans; each fault-free plan precedes the plans that are compared with it.

    A quick run leaves out variants and the plan that needs MLflow.
    """
    all_plans = [
        *_with_sinks_in_threads(context.pick(300_000, 10_000)),
        *_with_delivery_process(context.pick(300_000, 10_000)),
        *_with_slow_disk(context.pick(120_000, 4_000), context.pick(40_000, 4_000)),
        *_with_images(context.pick(30, 3) * (len(NAMES) + 1)),
    ]
    return [plan for plan in all_plans if plan.quick or not context.quick]


def _with_sinks_in_threads(values: int) -> list[Plan]:
    floor, up = "two sinks in threads", partial(open_with_object, up=True)
    down = partial(open_with_object, up=False)
    return [
        Plan(floor, "", log_scalars, values, up),
        Plan("a sink that is down", floor, log_scalars, values, down, down="SwitchedSink"),
        Plan("10,000 names", floor, log_many_names, values, up),
        Plan("every value is NaN", floor, log_nan, values, up),
    ]


def _with_delivery_process(values: int) -> list[Plan]:
    floor, up = "csv in the delivery process", partial(open_bus, sinks="csv", delivery="process")
    server_down = "csv, and the MLflow server is down"
    return [
        Plan(floor, "", log_scalars, values, up, quick=False),
        Plan(server_down, floor, log_scalars, values, open_with_dead_server, "mlflow", quick=False),
    ]


def _with_slow_disk(values: int, queue_values: int) -> list[Plan]:
    floor, short_queue = "journal only", "queue of 1,000 calls"
    open_short = partial(open_bus, sinks="", queue_size=SHORT_QUEUE)
    plans = [
        Plan(floor, "", log_scalars, values, partial(open_bus, sinks="")),
        Plan("disk at 1 MB/s", floor, log_scalars, values, open_on_slow_disk),
        Plan(short_queue, "", log_scalars, queue_values, open_short),
    ]
    for overflow in ("block", "drop_newest", "drop_oldest"):
        name = f"full {short_queue}, overflow={overflow}"
        plan = Plan(
            name,
            short_queue,
            log_scalars,
            queue_values,
            partial(open_on_slow_disk, queue_size=SHORT_QUEUE, overflow=overflow),
            drops=overflow != "block",
            quick=overflow == "drop_oldest",
        )
        plans.append(plan)
    return plans


def _with_images(values: int) -> list[Plan]:
    floor, image = "50 ms steps", "a 4 MiB image per step"
    open_blocking = partial(open_bus, sinks="csv")
    open_dropping = partial(open_bus, sinks="csv", overflow="drop_newest")
    lossy = f"{image}, overflow=drop_newest"
    return [
        Plan(floor, "", log_steps, values, open_blocking),
        Plan(image, floor, log_images, values, open_blocking),
        Plan(lossy, floor, log_images, values, open_dropping, drops=None, quick=False),
    ]

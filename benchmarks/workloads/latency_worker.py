"""Worker process of an arm in the case `latency`: opens the arm, takes its turns, and closes it.

All arms run the same loop. Another process measures the rates of the collector.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import resource
import time
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.peers import quiet
from benchmarks.workloads.latency_arms import TIMEOUT_SECS, Arm, Log, Opened
from benchmarks.workloads.reading import complete
from metricbus import MetricBus

NAMES = [f"train/metric{i}" for i in range(20)]
TAILS = (0.5, 0.1, 0.01, 0.001, 0.0001)  # fractions of the calls that take longer


class Turn(NamedTuple):
    """Results of one turn, in nanoseconds: a quantile for each share in `TAILS`, then the maximum.

    `durations` describes single calls. `lateness` describes steps: the time from when a step was
    due until its calls had returned. `switches` counts involuntary context switches, `collections`
    garbage collections.
    """

    durations: list[int]
    lateness: list[int]
    switches: int
    collections: int


class _State:
    """State that the worker process keeps between turns."""

    opened: Opened
    steps = 0


def open_arm(arm: Arm, folder: Path) -> None:
    """Open the arm and log once, so that every component has started."""
    quiet()
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    for name in ("CACHE", "CONFIG", "DATA"):
        os.environ[f"WANDB_{name}_DIR"] = str(folder)
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO)
    _State.opened = arm.open(folder)
    take_turn(1e4, 200)  # warms up


def take_turn(rate: float, calls: int) -> Turn:
    """Make at least this many calls and wait until the arm has settled."""
    steps = math.ceil(calls / len(NAMES))
    turn = loop(_State.opened.log, rate, _State.steps, steps)
    _State.steps += steps
    _State.opened.settle()
    return turn


def measure_full_speed(calls: int) -> float:
    """Return the rate in calls per second at full speed, including delivery."""
    start = time.perf_counter()
    take_turn(math.inf, calls)
    return calls / (time.perf_counter() - start)


def close_arm() -> str:
    """Close the arm; return what was read back, or raise if any value is missing."""
    return _State.opened.close(_State.steps * len(NAMES))


def loop(log: Log, rate: float, first: int, steps: int) -> Turn:
    """Log 20 values when each step is due, and run a busy loop in Python until then."""
    now = time.perf_counter_ns
    interval = int(len(NAMES) / rate * 1e9)
    durations, lateness = array("q", bytes(8 * steps * len(NAMES))), array("q", bytes(8 * steps))
    gc.collect()
    # Excludes imported modules from garbage collection, because they differ between the arms.
    gc.freeze()
    switches, collections = _context_switches(), _collections()
    call = 0
    due = now()
    for i in range(steps):
        due += interval
        while now() < due:
            pass
        for name in NAMES:
            start = now()
            log(name, 0.5, step=first + i)
            durations[call] = now() - start
            call += 1
        lateness[i] = now() - due
    return Turn(
        _tail(durations),
        _tail(lateness),
        _context_switches() - switches,
        _collections() - collections,
    )


def _tail(times: array[int]) -> list[int]:
    quantiles = np.quantile(np.frombuffer(times, dtype=np.int64), [1 - share for share in TAILS])
    return [*map(int, quantiles), max(times)]


def _context_switches() -> int:
    """Return the number of involuntary context switches of this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _collections() -> int:
    return sum(int(generation["collections"]) for generation in gc.get_stats())


class Rates(NamedTuple):
    """Rates from the queue to the journal in values per second, under two kinds of load.

    `with_busy_loop` is the rate while a loop logs without yielding the GIL. `with_waiting_loop` is
    the rate when the loop waits for the collector because the queue is full.
    """

    with_busy_loop: float
    with_waiting_loop: float


def collector_rates(folder: Path, calls: int) -> Rates:
    """Return the collector's rates, measured with loops that log at full speed."""
    steps = calls // len(NAMES)
    with MetricBus(sinks="", dir=folder, queue_size=10 * calls) as bus:
        _log_at_full_speed(bus, range(steps))  # builds up a backlog for the collector
        before, start = bus.stats().journalled, time.perf_counter()
        _log_at_full_speed(bus, range(steps, 3 * steps))
        seconds = time.perf_counter() - start
        with_busy_loop = (bus.stats().journalled - before) / seconds
    with MetricBus(sinks="", dir=folder) as bus:
        start = time.perf_counter()
        _log_at_full_speed(bus, range(3 * steps))
        report = bus.flush(TIMEOUT_SECS)
        with_waiting_loop = report.journalled / (time.perf_counter() - start)
        complete("journal", report.journalled, 3 * steps * len(NAMES))
    return Rates(with_busy_loop, with_waiting_loop)


def _log_at_full_speed(bus: MetricBus, steps: range) -> None:
    for step in steps:
        for name in NAMES:
            bus.log(name, 0.5, step=step)

"""What an arm's process does in the case `latency`: it opens the arm, takes its turns, and closes.

The loop is the same for all arms. In another process, the collector's own rates are measured.
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
from benchmarks.workloads.latency_arms import PATIENCE, Arm, Log, Opened
from benchmarks.workloads.reading import complete
from metricbus import MetricBus

NAMES = [f"train/metric{i}" for i in range(20)]
TAILS = (0.5, 0.1, 0.01, 0.001, 0.0001)  # shares of the calls that take longer; the last is the max


class Turn(NamedTuple):
    """What one turn gave, in nanoseconds: for each share of `TAILS`, and the greatest last.

    `took` is of single calls, `late` of steps: from when one was due until all its calls were done.
    """

    took: list[int]
    late: list[int]
    switches: int
    collections: int


class _State:
    """What an arm's process keeps between its turns."""

    opened: Opened
    steps = 0


def open_arm(arm: Arm, folder: Path) -> None:
    """Opens it, and has everything at work once."""
    quiet()
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    for name in ("CACHE", "CONFIG", "DATA"):
        os.environ[f"WANDB_{name}_DIR"] = str(folder)
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO)
    _State.opened = arm.open(folder)
    take_turn(1e4, 200)  # what the first calls do once


def take_turn(rate: float, calls: int) -> Turn:
    """At least so many calls; returns when the arm has settled."""
    steps = math.ceil(calls / len(NAMES))
    seen = loop(_State.opened.log, rate, _State.steps, steps)
    _State.steps += steps
    _State.opened.settle()
    return seen


def flood(calls: int) -> float:
    """Calls a second that it takes as fast as possible, until they have arrived."""
    start = time.perf_counter()
    take_turn(math.inf, calls)
    return calls / (time.perf_counter() - start)


def close_arm() -> str:
    """What was read back; raises unless it is all."""
    return _State.opened.close(_State.steps * len(NAMES))


def loop(log: Log, rate: float, first: int, steps: int) -> Turn:
    """Logs each step's 20 values when they are due, and is busy in Python until then."""
    now = time.perf_counter_ns
    gap = int(len(NAMES) / rate * 1e9)
    took, late = array("q", bytes(8 * steps * len(NAMES))), array("q", bytes(8 * steps))
    gc.collect()
    gc.freeze()  # what is imported costs no arm anything; what is logged is collected as ever
    switches, collections = _switches(), _collections()
    call = 0
    due = now()
    for i in range(steps):
        due += gap
        while now() < due:
            pass
        for name in NAMES:
            begun = now()
            log(name, 0.5, step=first + i)
            took[call] = now() - begun
            call += 1
        late[i] = now() - due
    return Turn(_tail(took), _tail(late), _switches() - switches, _collections() - collections)


def _tail(times: array[int]) -> list[int]:
    inverted = np.quantile(np.frombuffer(times, dtype=np.int64), [1 - share for share in TAILS])
    return [*map(int, inverted), max(times)]


def _switches() -> int:
    """How often the kernel took this thread's core away for something else."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _collections() -> int:
    return sum(int(generation["collections"]) for generation in gc.get_stats())


class Rates(NamedTuple):
    """Values a second from the queue into the journal, with what logs them working against it."""

    beside_busy: float
    in_all: float


def collectors_rates(folder: Path, calls: int) -> Rates:
    """The loop never lets go of the interpreter by itself; or only where the queue is full."""
    steps = calls // len(NAMES)
    with MetricBus(sinks="", dir=folder, queue_size=10 * calls) as bus:
        _log_at_once(bus, range(steps))  # from here on, more waits than the collector can take
        before, start = bus.stats().journalled, time.perf_counter()
        _log_at_once(bus, range(steps, 3 * steps))
        seconds = time.perf_counter() - start
        beside_busy = (bus.stats().journalled - before) / seconds
    with MetricBus(sinks="", dir=folder) as bus:
        start = time.perf_counter()
        _log_at_once(bus, range(3 * steps))
        report = bus.flush(PATIENCE)
        in_all = report.journalled / (time.perf_counter() - start)
        complete("journal", report.journalled, 3 * steps * len(NAMES))
    return Rates(beside_busy, in_all)


def _log_at_once(bus: MetricBus, steps: range) -> None:
    for step in steps:
        for name in NAMES:
            bus.log(name, 0.5, step=step)

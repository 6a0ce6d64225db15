"""What is logged in the case `growth`: threads that log so many values under so many names."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import msgspec

from metricbus import MetricBus

PACE = 400_000  # values a second, all threads together
BURST = 1_000
A_STEP = 20
WARM_UP = 2_000


class Shape(msgspec.Struct, frozen=True):
    """One run: how much is logged, and how; `together` means all values of a step in one call."""

    values: int
    names: int = A_STEP
    threads: int = 1
    sinks: str = "csv,tensorboard"
    together: bool = True


class Bare:
    """The least that such a call can do in Python: append what it got, and when."""

    def __init__(self) -> None:
        self.waiting: deque[object] = deque()

    def log(self, name: Any, value: Any = None, *, step: int) -> None:
        """Keeps it; of a mapping, a copy."""
        what = name if type(name) is str else dict(name)
        self.waiting.append((what, value, step, time.time_ns()))


Logs: TypeAlias = MetricBus | Bare


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

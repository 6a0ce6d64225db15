"""Workload of the case `growth`: threads that log a given number of values and names."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import msgspec

from metricbus import MetricBus

PACE = 400_000  # values per second, over all threads
BURST = 1_000  # values
VALUES_PER_STEP = 20
WARM_UP = 2_000  # values


class RunShape(msgspec.Struct, frozen=True):
    """Size of one run; `together` logs all values of a step in one call."""

    values: int
    names: int = VALUES_PER_STEP
    threads: int = 1
    sinks: str = "csv,tensorboard"
    together: bool = True


class BareDeque:
    """Floor: appends the arguments and the time to a deque, the least that such a call can do."""

    def __init__(self) -> None:
        self.calls: deque[object] = deque()

    def log(self, name: Any, value: Any = None, *, step: int) -> None:
        """Append the arguments; copy a mapping."""
        name_or_row = name if type(name) is str else dict(name)
        self.calls.append((name_or_row, value, step, time.time_ns()))


Logger: TypeAlias = MetricBus | BareDeque


class Producer:
    """Loop of one thread, with separate names and steps; it accumulates the time of its calls."""

    def __init__(self, shape: RunShape, number: int) -> None:
        prefix = f"t{number}" if shape.threads > 1 else "train"
        self.width = min(shape.names, VALUES_PER_STEP)
        self._names = shape.names
        self._rows = [
            {f"{prefix}/m{i % shape.names}": i / 7 for i in range(start, start + self.width)}
            for start in range(0, max(shape.names, 64 * self.width), self.width)
        ]
        self._share = shape.values // shape.threads
        self._pace = PACE / shape.threads
        self._together = shape.together
        self.step = 0
        self.processor = self.wall = 0

    def produce(self, bus: Logger, between: Callable[[], object], *, paced: bool) -> None:
        """Log this thread's share of the values; call `between` after each burst, untimed."""
        self.processor = self.wall = 0
        due = time.perf_counter()
        for steps in self._bursts(self._share // self.width):
            self._log(bus, steps)
            between()
            due += len(steps) * self.width / self._pace
            if paced:
                time.sleep(max(0.0, due - time.perf_counter()))

    def warm_up(self, bus: Logger) -> None:
        """Log until every name has been used at least once."""
        for steps in self._bursts(max(WARM_UP, self._names) // self.width):
            self._log(bus, steps)

    def _bursts(self, steps: int) -> Iterator[range]:
        end, length = self.step + steps, BURST // self.width
        for start in range(self.step, end, length):
            self.step = min(end, start + length)
            yield range(start, self.step)

    def _log(self, bus: Logger, steps: range) -> None:
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
    """All threads of a run; the first one also calls `between`."""

    def __init__(self, shape: RunShape) -> None:
        self._producers = [Producer(shape, number) for number in range(shape.threads)]

    @property
    def logged(self) -> int:
        """The number of values logged so far."""
        return sum(producer.step * producer.width for producer in self._producers)

    def warm_up(self, bus: Logger) -> None:
        """Warm up the producers one after the other."""
        for producer in self._producers:
            producer.warm_up(bus)

    def produce(self, bus: Logger, between: Callable[[], object], *, paced: bool) -> int:
        """Run all producers in parallel; return the number of values logged."""
        before = self.logged
        first, *others = self._producers
        with ThreadPoolExecutor(max_workers=len(self._producers)) as threads:
            futures = [
                threads.submit(producer.produce, bus, int, paced=paced) for producer in others
            ]
            first.produce(bus, between, paced=paced)
            for future in futures:
                future.result()
        return self.logged - before

    def spent(self, values: int) -> tuple[float, float]:
        """Return the processor time and the wall time of all calls, in nanoseconds per value."""
        processor = sum(producer.processor for producer in self._producers)
        wall = sum(producer.wall for producer in self._producers)
        return processor / values, wall / values

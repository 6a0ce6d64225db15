"""Loops that move the clock: `bus.steps()` and `bus.epochs()`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Generic, TypeVar

from metricbus.errors import MissingPackageError
from metricbus.steps import LOOP, Clock, both_drive, check_step

T = TypeVar("T")

EPOCH_TIME = "time/epoch"
"""The name under which a bus logs how long an epoch of `epochs()` took."""


class Steps(Generic[T]):
    """Iterates like what it wraps; taking an item moves the step, if nobody else is moving it."""

    def __init__(
        self, clock: Clock, iterable: Iterable[T], *, advance: bool, progress: bool | None
    ) -> None:
        if not isinstance(iterable, Iterable) and not hasattr(iterable, "__getitem__"):
            raise TypeError(
                f"bus.steps() takes something to iterate over, not {iterable!r:.60}; "
                "to count, write bus.steps(range(n))"
            )
        self._clock = clock
        self._iterable = iterable
        self._advance = advance
        self._progress = progress

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # its own TypeError is the right one

    def __iter__(self) -> Iterator[T]:
        clock = self._clock
        if self._advance and clock.step_driver not in (None, LOOP):
            raise both_drive(LOOP, str(clock.step_driver))
        drives = self._advance and clock.step_driver is None
        if drives:
            clock.step_driver = LOOP
        clock.loops += 1
        try:
            for item in _with_bar(self._iterable, "step", self._progress):
                if drives:
                    clock.enter_step()
                yield item
        finally:
            clock.loops -= 1
            if drives:
                clock.step_driver = None


class Epochs:
    """Yields the numbers of the next `n` epochs, and ends each one after its turn."""

    def __init__(
        self,
        clock: Clock,
        n: int,
        begins: Callable[[], object],
        ends: Callable[[float], object],
        *,
        progress: bool | None,
    ) -> None:
        self._clock = clock
        self._n = check_step(n, "n")
        self._begins = begins
        self._ends = ends  # told how many seconds the epoch took
        self._progress = progress

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[int]:
        clock = self._clock
        if clock.epoch_driver is not None:
            raise RuntimeError(
                f"{clock.epoch_driver} is moving the epoch already; loop over range({self._n}) "
                "inside it"
            )
        clock.epoch_driver = "bus.epochs()"
        try:
            for _ in _with_bar(range(self._n), "epoch", self._progress):
                clock.enter_epoch()
                started = time.perf_counter()
                self._begins()
                yield clock.epoch
                self._ends(time.perf_counter() - started)
        finally:
            clock.epoch_driver = None


def _with_bar(iterable: Iterable[T], unit: str, progress: bool | None) -> Iterable[T]:
    """The iterable behind a progress bar: when asked for, or on a terminal where tqdm is there."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return iterable
    if find_spec("tqdm") is None:
        if progress:
            raise MissingPackageError("progress=True needs tqdm: pip install 'metricbus[cli]'")
        return iterable
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(iterable, unit=unit, leave=unit == "epoch")
    return bar

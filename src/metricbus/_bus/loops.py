"""Loops that move the clock: `bus.steps()` and `bus.epochs()`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from metricbus._bus.progress import Progress
from metricbus._common.clock import LOOP, Clock, both_drive, check_step

T = TypeVar("T")


class Steps(Generic[T]):
    """Iterates like what it wraps; taking an item moves the step, if nobody else is moving it.

    `phase` is the scope whose loop it is, if it is one's.
    """

    phase = ""

    def __init__(
        self, clock: Clock, iterable: Iterable[T], progress: Progress, *, advance: bool
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
            with self._progress.over_steps(
                self._iterable, self, self._described(), below=self._below(), drives=drives
            ) as items:
                for item in items:
                    if drives:
                        clock.enter_step()
                    yield item
        finally:
            clock.loops -= 1
            if drives:
                clock.step_driver = None

    def _described(self) -> str:
        """What stands before its bar: the phase, or the epoch by the number that is logged."""
        clock = self._clock
        if self.phase:
            return self.phase
        return f"epoch {clock.epoch}" if clock.epoch_driver or clock.epoch else ""

    def _below(self) -> str:
        """The prefix of the metrics beside its bar; a loop that trains has them all."""
        return f"{self.phase}/" if self.phase and not self._advance else ""


class Epochs:
    """Yields the numbers of the next `n` epochs, and ends each one after its turn."""

    def __init__(
        self,
        clock: Clock,
        n: int,
        begins: Callable[[], object],
        ends: Callable[[float], object],
        progress: Progress,
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
            with self._progress.over_epochs(self._n, self) as turns:
                for _ in turns:
                    clock.enter_epoch()
                    started = time.perf_counter()
                    self._begins()
                    yield clock.epoch
                    self._ends(time.perf_counter() - started)
        finally:
            clock.epoch_driver = None

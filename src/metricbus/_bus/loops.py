"""The loops that move the clock: `bus.steps()` and `bus.epochs()`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from metricbus._bus.progress import ProgressBars
from metricbus._common.clock import STEPS_DRIVER, Clock, check_step, step_driver_conflict

T = TypeVar("T")


class Steps(Generic[T]):
    """An iterable over the items of another one, which advances the step for each item.

    The step stays as it is with `advance=False`, and where an outer loop advances it. `phase` is
    the prefix of the scope that made the loop; empty for a loop of the bus itself.
    """

    phase = ""

    def __init__(
        self, clock: Clock, iterable: Iterable[T], bars: ProgressBars, *, advance: bool
    ) -> None:
        if not isinstance(iterable, Iterable) and not hasattr(iterable, "__getitem__"):
            raise TypeError(
                f"bus.steps() needs an iterable, not {iterable!r:.60}; "
                "to count, write bus.steps(range(n))"
            )
        self._clock = clock
        self._iterable = iterable
        self._advance = advance
        self._bars = bars

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # its own TypeError is the right one

    def __iter__(self) -> Iterator[T]:
        clock = self._clock
        if self._advance and clock.step_driver not in (None, STEPS_DRIVER):
            raise step_driver_conflict(STEPS_DRIVER, str(clock.step_driver))
        drives = self._advance and clock.step_driver is None
        if drives:
            clock.step_driver = STEPS_DRIVER
        clock.active_loops += 1
        try:
            with self._bars.wrap_steps(
                self._iterable, self, self._bar_label(), prefix=self._bar_prefix(), drives=drives
            ) as items:
                for item in items:
                    if drives:
                        clock.enter_step()
                    yield item
        finally:
            clock.active_loops -= 1
            if drives:
                clock.step_driver = None

    def _bar_label(self) -> str:
        """Return the text before the progress bar: the phase, or else the number of the epoch."""
        clock = self._clock
        if self.phase:
            return self.phase
        return f"epoch {clock.epoch}" if clock.epoch_driver or clock.epoch else ""

    def _bar_prefix(self) -> str:
        """Return the prefix of the metrics that the bar shows; a training loop shows them all."""
        return f"{self.phase}/" if self.phase and not self._advance else ""


class Epochs:
    """An iterable over the numbers of the next `n` epochs, which begins and ends each of them.

    `end` receives the duration of the epoch in seconds.
    """

    def __init__(
        self,
        clock: Clock,
        n: int,
        begin: Callable[[], object],
        end: Callable[[float], object],
        bars: ProgressBars,
    ) -> None:
        self._clock = clock
        self._n = check_step(n, "n")
        self._begin = begin
        self._end = end
        self._bars = bars

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[int]:
        clock = self._clock
        if clock.epoch_driver is not None:
            raise RuntimeError(
                f"{clock.epoch_driver} already moves the epoch; inside it, loop over "
                f"range({self._n})"
            )
        clock.epoch_driver = "bus.epochs()"
        try:
            with self._bars.wrap_epochs(self._n, self) as items:
                for _ in items:
                    clock.enter_epoch()
                    started = time.perf_counter()
                    self._begin()
                    yield clock.epoch
                    self._end(time.perf_counter() - started)
        finally:
            clock.epoch_driver = None

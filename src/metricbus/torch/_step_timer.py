"""`StepTimer`: measure where the time of a training step goes, without synchronizing.

On a GPU, CUDA events are recorded in the current stream. Between steps the timer checks which ones
the device has reached, and logs each finished step at the step at which it was measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import check_bus
from metricbus._bus.scope import Scope
from metricbus._common.clock import STEPS_DRIVER, check_every, check_step, get_clock
from metricbus._common.handle import HookHandle
from metricbus.torch._device_timers import timer_for
from metricbus.torch._step_timing import StepTiming

T = TypeVar("T")

_EXHAUSTED: Any = object()


class StepTimer(HookHandle):
    """Times the steps of a training loop and their phases.

    timer = StepTimer(bus)
    for x, y in timer(bus.steps(loader)):
        with timer.forward():
            loss = loss_of(model(x), y)
        with timer.backward():
            loss.backward()
        with timer.optimizer():
            optimizer.step()
        timer.count(samples=len(x))

    Once every `every` steps it logs:

    - in seconds, `time/data` (waiting for the next item), `time/forward`, `time/backward` and
      `time/optimizer` (the phases that were entered), `time/step` (the whole step) and `time/other`
      (the rest);
    - per second, `throughput/samples` and `throughput/tokens`, if they were counted;
    - in bytes, `memory/peak`: on a GPU, the peak memory allocated by tensors since the last
      measured item; on a CPU, the peak resident memory of the process so far.

    A step is one item of the loop. If `watch_optimizer(advance=True)` drives the bus's step, it is
    all items until the bus's step advances or the loop ends. Their times and counts are summed into
    one row, and `every` counts steps, not items.

    The times of a phase that is entered several times in a step are summed. Time in nested phases
    is attributed to the inner one only. Outside a loop, and in steps that are not measured, phases
    and counts have no effect. A step that ends with `break` is logged as far as it got; one in
    which a phase raised is not logged.

    `device` is where the model runs; by default "cuda" if available, else "cpu". On a GPU,
    `time/data` is measured on the host and the other times on the device. They can overlap, so
    their sum can exceed `time/step`; `time/other` is then 0. The loop never waits for the device
    until it ends; then it waits for the outstanding steps. Devices of other types are timed with
    the host's clock.

    Call `remove()`, or use the timer as a context manager, to stop measuring; running loops
    continue.
    """

    def __init__(
        self, bus: MetricBus | Scope, every: int = 1, device: torch.device | str | None = None
    ) -> None:
        check_bus("StepTimer(bus)", bus)
        bus.log({})  # opens the default bus
        self._bus = bus
        self._every = check_every(every)
        self._timer = timer_for(device)
        self._steps = 0
        # The bus's step when the newest step began, and whether the next item belongs to that step.
        self._bus_step = 0
        self._is_continued = False
        # The newest step if it is measured. `_active` is set only while one of its items is
        # processed.
        self._current: StepTiming | None = None
        self._active: StepTiming | None = None
        # Finished steps whose end the device has not reached.
        self._waiting: deque[StepTiming] = deque()
        self._is_looping = False
        self._is_removed = False

    def __call__(self, iterable: Iterable[T]) -> TimedIterable[T]:
        """Wrap an iterable; iterating over it measures steps.

        Iterating raises `RuntimeError` inside a loop that this timer already measures.
        """
        return TimedIterable(iterable, self._iterate)

    def forward(self) -> AbstractContextManager[None]:
        """Attribute the time in the `with` block to the forward pass."""
        return self._phase("forward")

    def backward(self) -> AbstractContextManager[None]:
        """Attribute the time in the `with` block to the backward pass."""
        return self._phase("backward")

    def optimizer(self) -> AbstractContextManager[None]:
        """Attribute the time in the `with` block to the optimizer."""
        return self._phase("optimizer")

    def count(self, *, samples: int = 0, tokens: int = 0) -> None:
        """Add to the counts of the current step, for throughput.

        Raises `TypeError` for a count that is not an int, `ValueError` for a negative one.
        """
        samples, tokens = check_step(samples, "samples"), check_step(tokens, "tokens")
        if self._active is not None:
            self._active.counts["samples"] += samples
            self._active.counts["tokens"] += tokens

    def _end(self, error: BaseException | None) -> None:
        """Stop measuring, wait for the device, and log the outstanding steps."""
        self._is_removed = True
        self._active = self._current = None
        self._log_ready(wait=True)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        step = self._active
        if step is None:
            yield
            return
        step.enter(name, self._timer.record())
        try:
            yield
        except BaseException:
            step.has_failed = True
            raise
        finally:
            step.leave(self._timer.record())

    def _iterate(self, iterable: Iterable[T]) -> Iterator[T]:
        if self._is_looping:
            raise RuntimeError(
                "this StepTimer already measures the outer loop; pass the inner loop to another "
                "StepTimer, or leave it unmeasured"
            )
        self._is_looping = True
        source = iter(iterable)
        try:
            while True:
                step = self._request_item()
                if (item := next(source, _EXHAUSTED)) is _EXHAUSTED:
                    return
                self._start_item(step)
                yield item
                self._finish_item()
        finally:
            self._is_looping = False
            # Set after `break`, and after an exception in the loop's body.
            if self._active is not None:
                self._finish_item()
            self._finish_step()
            self._log_ready(wait=True)

    def _request_item(self) -> StepTiming | None:
        """Return the step that the next item belongs to; None if it is not measured."""
        if self._is_continued:
            if self._current is not None:
                self._current.requested_at = perf_counter()
            return self._current
        is_due = self._steps % self._every == 0 and not self._is_removed
        if not is_due or not self._bus.is_on:
            return None
        return StepTiming(self._timer.record(), perf_counter())

    def _start_item(self, step: StepTiming | None) -> None:
        self._active = self._current = step
        if not self._is_continued:
            self._steps += 1
            self._bus_step = self._bus.step
        if step is not None:
            step.data_secs += perf_counter() - step.requested_at
            step.bus_step = self._bus_step

    def _finish_item(self) -> None:
        """Finish the item, and its step unless a driver has yet to advance the bus's step."""
        step, self._active = self._active, None
        if step is not None:
            step.item_finished(self._timer.record(), self._timer.peak_memory(), self._bus.epoch)
        clock = get_clock(self._bus)
        has_other_driver = clock.step_driver not in (None, STEPS_DRIVER)
        self._is_continued = has_other_driver and clock.step == self._bus_step
        if not self._is_continued:
            self._finish_step()
        self._log_ready()

    def _finish_step(self) -> None:
        step, self._current, self._is_continued = self._current, None, False
        if step is not None and not step.has_failed:
            # Without a driver, the first value logged in the item has advanced the bus to its step.
            if not get_clock(self._bus).has_driver:
                step.bus_step = self._bus.step
            self._waiting.append(step)

    def _log_ready(self, *, wait: bool = False) -> None:
        try:
            if wait and self._waiting:
                self._timer.wait(self._waiting[-1].end)
            while self._waiting and self._timer.is_complete(self._waiting[0].end):
                step = self._waiting.popleft()
                self._bus.log(step.metrics(self._timer), step=step.bus_step, epoch=step.epoch)
        except RuntimeError:
            # A device error. The training code raises it as well, at the call that failed.
            self._waiting.clear()


class TimedIterable(Generic[T]):
    """An iterable wrapped by a `StepTimer`; has a length if the wrapped one has."""

    def __init__(
        self, iterable: Iterable[T], iterate: Callable[[Iterable[T]], Iterator[T]]
    ) -> None:
        self._iterable = iterable
        self._iterate = iterate

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # raises the wrapped object's TypeError

    def __iter__(self) -> Iterator[T]:
        return self._iterate(self._iterable)

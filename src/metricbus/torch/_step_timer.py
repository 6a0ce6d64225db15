"""Where the time of a training step goes, without waiting for the device.

What happens on a GPU is timed by CUDA events in the training's stream. They are looked at between
steps, and a step is logged, at the step that it was, when the device has got to its end.
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
from metricbus._common.clock import LOOP, check_every, check_step, clock_of
from metricbus._common.handle import HookHandle
from metricbus.torch._device_timers import marks_of
from metricbus.torch._step_timing import TimedStep

T = TypeVar("T")

_NOTHING: Any = object()


class StepTimer(HookHandle):
    """Times the steps of a training loop and what they are made of.

    timer = StepTimer(bus)
    for x, y in timer(bus.steps(loader)):
        with timer.forward():
            loss = loss_of(model(x), y)
        with timer.backward():
            loss.backward()
        with timer.optimizer():
            optimizer.step()
        timer.count(samples=len(x))

    Of every `every`-th step it logs, in seconds, `time/data` (waiting for the next item),
    `time/forward`, `time/backward`, `time/optimizer` as far as they were marked, `time/step` (all
    of it) and `time/other` (what is left); `throughput/samples` and `throughput/tokens` a second,
    as far as they were counted; and `memory/peak` in bytes: what tensors took on the GPU at most
    since the last time, or on a CPU, what the process has had in memory at most so far.

    A step is one item of the loop, unless `watch_optimizer(advance=True)` moves the bus's step:
    then it is all items until the step has moved, or the loop ends. Their data, parts and counts
    add up to one row, and `every` counts steps, not items.

    A part that comes several times in a step adds up. Where one is inside another, time counts for
    the inner one alone. Outside of a loop, and in steps that are left out, parts and counts do
    nothing. A step that the loop breaks off ends there; one in which a part raised is not logged.

    `device` is where the work is: if it is left out, "cuda" where there is one, else "cpu". On a
    GPU the data's time is the CPU's and all others are the device's; where the two overlap, what is
    left is 0. The loop never waits for the device; when it ends, what is outstanding is waited for.
    Devices of other types are timed by the CPU's clock.

    `remove()`, or the end of its `with` block, ends the measuring: loops go on as if unwrapped.
    """

    def __init__(
        self,
        bus: MetricBus | Scope,
        every: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        check_bus("StepTimer(bus)", bus)
        bus.log({})  # has the process-wide bus look at the environment
        self._bus = bus
        self._every = check_every(every)
        self._marks = marks_of(device)
        self._taken = 0  # steps, of all loops
        self._number = 0  # the bus's step when the newest of them began
        self._goes_on = False  # whether the next item belongs to that one, too
        self._open: TimedStep | None = None  # that one, if it is measured
        self._step: TimedStep | None = None  # the same, while one of its items is worked on
        self._waiting: deque[TimedStep] = (
            deque()
        )  # those of which the device has not reached the end
        self._is_looping = False
        self._is_removed = False

    def __call__(self, iterable: Iterable[T]) -> TimedLoop[T]:
        """Iterates like `iterable`, measuring; `RuntimeError` inside a loop that it measures."""
        return TimedLoop(iterable, self._items)

    def forward(self) -> AbstractContextManager[None]:
        """The block is (a part of) the step's forward pass."""
        return self._part("forward")

    def backward(self) -> AbstractContextManager[None]:
        """The block is (a part of) the step's backward pass."""
        return self._part("backward")

    def optimizer(self) -> AbstractContextManager[None]:
        """The block is the optimizer's part of the step."""
        return self._part("optimizer")

    def count(self, *, samples: int = 0, tokens: int = 0) -> None:
        """Adds to what the current step has worked through; `TypeError` for what is no int."""
        samples, tokens = check_step(samples, "samples"), check_step(tokens, "tokens")
        if self._step is not None:
            self._step.counts["samples"] += samples
            self._step.counts["tokens"] += tokens

    def _end(self, error: BaseException | None) -> None:
        """Logs what is outstanding, waiting for the device; measures nothing any more."""
        self._is_removed = True
        self._step = self._open = None
        self._log_ready(wait=True)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        step = self._step
        if step is None:
            yield
            return
        step.enter(name, self._marks.mark())
        try:
            yield
        except BaseException:
            step.failed = True
            raise
        finally:
            step.leave(self._marks.mark())

    def _items(self, iterable: Iterable[T]) -> Iterator[T]:
        if self._is_looping:
            raise RuntimeError(
                "this StepTimer is in a loop already, and a step within a step has no time of its "
                "own; give the inner loop a StepTimer of its own, or none"
            )
        self._is_looping = True
        source = iter(iterable)
        try:
            while True:
                step = self._asked()
                if (item := next(source, _NOTHING)) is _NOTHING:
                    return
                self._work_on(step)
                yield item
                self._end_item()
        finally:  # also by break, and by an exception in the loop or in what it iterates over
            self._is_looping = False
            if self._step is not None:
                self._end_item()
            self._end_step()
            self._log_ready(wait=True)

    def _asked(self) -> TimedStep | None:
        """The step for which an item is waited for; None if it is left out."""
        if self._goes_on:
            if self._open is not None:
                self._open.asked_at = perf_counter()
            return self._open
        is_due = self._taken % self._every == 0 and not self._is_removed
        if not is_due or not self._bus.is_on:
            return None
        return TimedStep(self._marks.mark(), perf_counter())

    def _work_on(self, step: TimedStep | None) -> None:
        """The item is there; a step that goes on with it has its number already."""
        self._step = self._open = step
        if not self._goes_on:
            self._taken += 1
            self._number = self._bus.step
        if step is not None:
            step.arrive(perf_counter())
            step.number = self._number

    def _end_item(self) -> None:
        """The item's step ends here, too, unless the next move of the step is still to come."""
        step, self._step = self._step, None
        if step is not None:
            step.end_item(self._marks.mark(), self._marks.peak_memory(), self._bus.epoch)
        clock = clock_of(self._bus)
        is_moved_by_others = clock.step_driver not in (None, LOOP)
        self._goes_on = is_moved_by_others and clock.step == self._number
        if not self._goes_on:
            self._end_step()
        self._log_ready()

    def _end_step(self) -> None:
        """The step that is open, if there is one, is over."""
        step, self._open, self._goes_on = self._open, None, False
        if step is not None and not step.failed:
            if not clock_of(self._bus).driven:  # then what was logged in the step has moved to it
                step.number = self._bus.step
            self._waiting.append(step)

    def _log_ready(self, *, wait: bool = False) -> None:
        try:
            if wait and self._waiting:
                self._marks.wait(self._waiting[-1].end)
            while self._waiting and self._marks.is_over(self._waiting[0].end):
                step = self._waiting.popleft()
                self._bus.log(step.row(self._marks), step=step.number, epoch=step.epoch)
        except RuntimeError:  # of the device: the training meets it too, and tells it better
            self._waiting.clear()


class TimedLoop(Generic[T]):
    """What a `StepTimer` makes of an iterable."""

    def __init__(self, iterable: Iterable[T], items: Callable[[Iterable[T]], Iterator[T]]) -> None:
        self._iterable = iterable
        self._items = items

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # its own TypeError is the right one

    def __iter__(self) -> Iterator[T]:
        return self._items(self._iterable)

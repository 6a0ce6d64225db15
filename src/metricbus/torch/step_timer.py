"""Where the time of a training step goes, without waiting for the device.

What happens on a GPU is timed by CUDA events in the training's stream. They are looked at between
steps, and a step is logged, at the step that it was, when the device has got to its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from metricbus.metric_bus import MetricBus
from metricbus.scope import Scope
from metricbus.steps import check_every, check_step, clock_of
from metricbus.torch.time_marks import Marks, marks_of

T = TypeVar("T")

_NOTHING: Any = object()


class StepTimer:
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
        bus.log({})  # has the process-wide bus look at the environment
        self._bus = bus
        self._every = check_every(every)
        self._marks = marks_of(device)
        self._taken = 0  # items, of all loops
        self._step: _Step | None = None  # the one that is measured now
        self._waiting: deque[_Step] = deque()  # those of which the device has not reached the end
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

    def remove(self) -> None:
        """Logs what is outstanding, waiting for the device; measures nothing any more."""
        self._is_removed = True
        self._step = None
        self._log_ready(wait=True)

    def __enter__(self) -> StepTimer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

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
                step = self._begun()
                if (item := next(source, _NOTHING)) is _NOTHING:
                    return
                self._work_on(step)
                yield item
                self._end()
        finally:  # also by break, and by an exception in the loop or in what it iterates over
            self._is_looping = False
            self._end()
            self._log_ready(wait=True)

    def _begun(self) -> _Step | None:
        """The next step, which begins with waiting for its data; None if it is left out."""
        is_due = self._taken % self._every == 0 and not self._is_removed
        self._taken += 1
        if not is_due or self._bus.run is None:
            return None
        return _Step(self._marks.mark(), perf_counter())

    def _work_on(self, step: _Step | None) -> None:
        """The step's data is there."""
        self._step = step
        if step is not None:
            step.data = perf_counter() - step.asked_at
            step.number = self._bus.step

    def _end(self) -> None:
        """The current step, if there is one, ends here."""
        step, self._step = self._step, None
        if step is not None and not step.failed:
            if not clock_of(self._bus).driven:  # then what was logged in the step has moved to it
                step.number = self._bus.step
            step.epoch = self._bus.epoch
            step.end = self._marks.mark()
            step.peak = self._marks.peak_memory()
            self._waiting.append(step)
        self._log_ready()

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


class _Step:
    """What was marked in one step. Stretches between marks belong to the innermost part."""

    def __init__(self, start: Any, asked_at: float) -> None:
        self.start = start
        self.asked_at = asked_at
        self.end: Any = None
        self.data = 0.0
        self.number = self.epoch = self.peak = 0
        self.counts = {"samples": 0, "tokens": 0}
        self.failed = False
        self._inside: list[str] = []
        self._since: Any = None
        self._stretches: list[tuple[str, Any, Any]] = []

    def enter(self, part: str, mark: Any) -> None:
        """The part begins at this mark."""
        self._turn(mark)
        self._inside.append(part)

    def leave(self, mark: Any) -> None:
        """The innermost part ends at this mark."""
        self._turn(mark)
        self._inside.pop()

    def row(self, marks: Marks) -> dict[str, float]:
        """What is logged of it, once the device has got to its end."""
        whole = marks.seconds(self.start, self.end)
        times = {"data": self.data}
        for part, start, end in self._stretches:
            times[part] = times.get(part, 0.0) + marks.seconds(start, end)
        times["other"] = max(0.0, whole - sum(times.values()))
        times["step"] = whole
        row = {f"time/{name}": secs for name, secs in times.items()}
        for what, count in self.counts.items():
            if count and whole > 0.0:
                row[f"throughput/{what}"] = count / whole
        row["memory/peak"] = self.peak
        return row

    def _turn(self, mark: Any) -> None:
        if self._inside:
            self._stretches.append((self._inside[-1], self._since, mark))
        self._since = mark

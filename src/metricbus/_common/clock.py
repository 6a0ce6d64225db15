"""Where a run stands: the current step and epoch, and who may move them.

Both count from 0 and only grow by themselves. The rules are the same for every sink because they
are applied here, before a record exists:

1. A step that is given is the record's step, and the current step becomes the larger of the two.
2. A step that is left out is the current step. `steps()`, `advance()` and
   `watch_optimizer(advance=True)` move it; these are the drivers. Without a driver, the first name
   that repeats moves it by one each time it comes again on the thread that logged it first, unless
   a given step has moved it since.

The current step changes by single statements without a call in them, which CPython's interpreter
lock does not divide; a test with 8 threads shows that no move is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

from metricbus._common.validation import INT_MAX

LOOP = "bus.steps()"
"""A `steps()` loop, as a driver."""


def check_step(step: object, what: str = "step") -> int:
    """`step` as a plain int from 0 to 2**63-1; else `TypeError` or `ValueError` saying why not."""
    if type(step) is int:
        number = step
    elif isinstance(step, Integral) and not isinstance(step, bool):
        number = int(step)
    else:
        raise TypeError(
            f"{what}= must be an int, not {type(step).__name__} ({step!r:.60}); "
            f"write {what}=int(…) if that is what you mean"
        )
    if number < 0:
        raise ValueError(f"{what}= must be 0 or more, not {number}")
    if number > INT_MAX:
        raise ValueError(f"{what}= must be below 2**63, not {number:.3e}")
    return number


def check_every(every: object) -> int:
    """`every` as a plain int from 1 on; else `TypeError` or `ValueError` saying why not."""
    number = check_step(every, "every")
    if number < 1:
        raise ValueError("every= must be 1 or more, not 0; with 1, nothing is left out")
    return number


def clock_of(bus: Any) -> Clock:
    """The clock of a bus, or of the bus behind a scope; `configure()` may give it another one."""
    clock: Clock = getattr(bus, "_bus", bus)._clock
    return clock


def both_drive(one: str, other: str) -> RuntimeError:
    """The error for two drivers that would both move the step; it says what to write instead."""
    if LOOP in (one, other):
        mend = "write bus.steps(loader, advance=False), which moves nothing"
    else:
        mend = "leave it to one of them"
    return RuntimeError(f"{one} and {other} would both move the step; {mend}")


class Clock:
    """The current step and epoch of one bus."""

    __slots__ = (
        "_first",
        "_fresh_epoch",
        "_fresh_step",
        "_ticked_at",
        "_ticker",
        "_ticker_thread",
        "driven",
        "epoch",
        "epoch_driver",
        "loops",
        "step",
        "step_driver",
    )

    def __init__(self) -> None:
        self.step = 0
        self.epoch = 0
        self.driven = False  # whether a driver has been used, so that names no longer tick
        self.step_driver: str | None = None  # who moves the step right now, while a loop runs
        self.epoch_driver: str | None = None
        self.loops = 0  # the steps() loops that run, those that move nothing too
        self._fresh_step = 0  # no loop has taken this step yet: the next one begins with it
        self._fresh_epoch = 0
        self._first: dict[str, tuple[int, int]] = {}  # name -> (thread, step) when it came first
        self._ticker: str | None = None
        self._ticker_thread = 0
        self._ticked_at = 0  # the step at which the ticker came last

    def implied(self, names: Collection[str]) -> int:
        """The step for a call that gave none and logs `names`; may move the step by one."""
        if self.driven:
            return self.step
        thread = threading.get_ident()
        if self._ticker is None:
            self._look_for_ticker(names, thread)
        if self._ticker_thread == thread and self._ticker in names:
            if self.step == self._ticked_at and self.step < INT_MAX:
                self.step += 1
            self._ticked_at = self.step
        return self.step

    def hand_to(self, driver: str) -> None:
        """From now on this one moves the step; `RuntimeError` if somebody else does already.

        What it logs repeatedly within a step moves nothing, from the first step on.
        """
        if self.step_driver is not None:
            raise both_drive(self.step_driver, driver)
        self.step_driver = driver
        self.driven = True

    def advance(self, n: int) -> None:
        """Moves the step by `n`, as a driver; `ValueError` beyond 64 bits."""
        if self.step > INT_MAX - n:
            raise ValueError(f"the step {self.step} cannot be moved by {n}: it would pass 2**63-1")
        self.driven = True
        self.step += n

    def enter_step(self) -> None:
        """Moves to a loop's next step; the very first one is where the run stands already."""
        self.driven = True
        if self.step != self._fresh_step and self.step < INT_MAX:
            self.step += 1
        self._fresh_step = -1

    def enter_epoch(self) -> None:
        """The same for epochs."""
        if self.epoch != self._fresh_epoch and self.epoch < INT_MAX:
            self.epoch += 1
        self._fresh_epoch = -1

    def leave_epoch(self) -> None:
        """Moves to an epoch that no loop has taken yet."""
        self.epoch += 1
        self._fresh_epoch = self.epoch

    def go_to(self, step: int, epoch: int) -> None:
        """Stands at this step and epoch, which are over: the next loop begins with the next."""
        self.step, self.epoch = step, epoch
        self._fresh_step = self._fresh_epoch = -1
        self._ticker = None
        self._first.clear()

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "driven": self.driven,
            "fresh_step": self._fresh_step,
            "fresh_epoch": self._fresh_epoch,
            "in_steps": self.step_driver is not None and self.loops > 0,
            "in_epochs": self.epoch_driver is not None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stands where it stood when it gave this `state`.

        If that was in a `steps()` loop, the epoch was not over: `epochs()` goes on with it.
        """
        self.go_to(check_step(state["step"]), check_step(state["epoch"], "epoch"))
        self.driven = self.driven or bool(state["driven"])
        self._fresh_step, self._fresh_epoch = state["fresh_step"], state["fresh_epoch"]
        if state.get("in_steps") and state.get("in_epochs"):
            self._fresh_epoch = self.epoch

    def _look_for_ticker(self, names: Collection[str], thread: int) -> None:
        here = (thread, self.step)
        for name in names:
            came = self._first.setdefault(name, here)
            if came is here or came[0] != thread:
                continue
            if came[1] == self.step:
                self._ticked_at = self.step
                self._ticker_thread = thread
                self._ticker = name
                return
            self._first[name] = here

"""The current step and epoch of a bus, and the rules by which they advance.

Both start at 0. The rules apply before a record exists, so they are the same for every sink:

1. If a call gives a step, its record has that step, and the current step becomes the larger of the
   two.
2. If a call gives no step, its record has the current step. `steps()`, `advance()` and
   `watch_optimizer(advance=True)` are drivers: they advance the current step. Without a driver, the
   first name that is logged twice becomes the counter: each further value of that name advances the
   step by one, unless a call with a step has advanced it since the previous value. Only calls from
   the thread that opened the bus count, so a monitor thread cannot drive the step.

The current step only changes in single statements without a function call, which the GIL makes
atomic; a test with 8 threads verifies that no update is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

from metricbus._common.device_values import is_device_value
from metricbus._common.validation import INT_MAX

_log = logging.getLogger("metricbus.steps")

STEPS_DRIVER = "bus.steps()"
"""Name of a `steps()` loop as a step driver."""


def check_step(step: object, what: str = "step") -> int:
    """Return `step` as a plain int.

    Accepts any integer, a float without a fraction, and an array or tensor of shape () on the host
    with such a number. Raises `TypeError` for anything else, and `ValueError` if the number is not
    from 0 to 2**63-1; the message calls the argument `what`.
    """
    number = step if type(step) is int else _whole_number(step, what)
    if number < 0:
        raise ValueError(f"{what}= must be 0 or more, not {number}")
    if number > INT_MAX:
        raise ValueError(f"{what}= must be less than 2**63, not {number:.3e}")
    return number


def _whole_number(step: object, what: str) -> int:
    value = step
    if getattr(step, "shape", None) == () and not is_device_value(step):
        value = step.item()  # type: ignore[attr-defined]  # an array, a tensor or a numpy number
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    remedy = f"convert it with {what}=int(…)"
    if is_device_value(step):
        remedy = "count in Python, because reading it would wait for the device"
    elif what == "epoch" and isinstance(value, float):
        remedy = "log the fraction as a metric, and use that as the x axis: bus.define(…, axis=…)"
    raise TypeError(f"{what}= must be an int, not {type(step).__name__} ({step!r:.60}); {remedy}")


def check_every(every: object) -> int:
    """Return `every` as a plain int; raise `TypeError` or `ValueError` unless it is 1 or more."""
    number = check_step(every, "every")
    if number < 1:
        raise ValueError("every= must be 1 or more, not 0; with every=1, nothing is skipped")
    return number


def get_clock(bus: Any) -> Clock:
    """Return the current clock of a bus, or of a scope's bus; `configure()` may replace it."""
    clock: Clock = getattr(bus, "_bus", bus)._core.recorder.clock
    return clock


def step_driver_conflict(first: str, second: str) -> RuntimeError:
    """Return the error for two drivers that would both advance the step."""
    if STEPS_DRIVER in (first, second):
        remedy = "write bus.steps(loader, advance=False), which does not advance it"
    else:
        remedy = "use only one of them"
    return RuntimeError(f"{first} and {second} would both advance the step; {remedy}")


class Clock:
    """The current step and epoch of one bus.

    `has_driver` is set once any driver has been used; then there is no counter. `step_driver` and
    `epoch_driver` name what advances the step and the epoch at present. `active_loops` is the
    number of running `steps()` loops, including those that do not advance the step.
    """

    __slots__ = (
        "_counter",
        "_counter_step",
        "_first_logged",
        "_unused_epoch",
        "_unused_step",
        "active_loops",
        "epoch",
        "epoch_driver",
        "has_driver",
        "owner_thread",
        "step",
        "step_driver",
    )

    def __init__(self) -> None:
        self.step = 0
        self.epoch = 0
        self.has_driver = False
        self.step_driver: str | None = None
        self.epoch_driver: str | None = None
        self.active_loops = 0
        # The step and epoch that no loop has used yet: the next loop starts with them. -1 if none.
        self._unused_step = 0
        self._unused_epoch = 0
        self.owner_thread = threading.get_ident()  # the one that opened the bus
        # Name -> step of its first value, until a counter is found.
        self._first_logged: dict[str, int] = {}
        self._counter: str | None = None
        self._counter_step = 0  # step of the counter's last value

    def implicit_step(self, names: Collection[str]) -> int:
        """Return the step of a call without a step that logs `names`; may advance the step."""
        if self.has_driver or threading.get_ident() != self.owner_thread:
            return self.step
        if self._counter is None:
            self._find_counter(names)
        if self._counter in names:
            if self.step == self._counter_step and self.step < INT_MAX:
                self.step += 1
            self._counter_step = self.step
        return self.step

    def set_step_driver(self, driver: str) -> None:
        """Make `driver` the step driver; raise `RuntimeError` if there already is one."""
        if self.step_driver is not None:
            raise step_driver_conflict(self.step_driver, driver)
        self.step_driver = driver
        self.has_driver = True

    def advance(self, n: int) -> None:
        """Advance the step by `n`, as a driver; raise `ValueError` if it would exceed 2**63-1."""
        if self.step > INT_MAX - n:
            raise ValueError(f"cannot advance step {self.step} by {n}: it would exceed 2**63-1")
        self.has_driver = True
        self.step += n

    def enter_step(self) -> None:
        """Move to the next step of a loop, or stay if no loop has used the current step yet."""
        self.has_driver = True
        if self.step != self._unused_step and self.step < INT_MAX:
            self.step += 1
        self._unused_step = -1

    def enter_epoch(self) -> None:
        """Move to the next epoch of a loop, or stay if no loop has used the current epoch yet."""
        self.epoch = min(self.next_epoch, INT_MAX)
        self._unused_epoch = -1

    @property
    def next_epoch(self) -> int:
        """The epoch with which the next `epochs()` loop starts."""
        return self.epoch + (self.epoch != self._unused_epoch)

    def leave_epoch(self) -> None:
        """Move to the next epoch, which no loop has used yet."""
        self.epoch += 1
        self._unused_epoch = self.epoch

    def move_past(self, step: int, epoch: int) -> None:
        """Move to a step and epoch that are complete: the next loop starts after them."""
        self.step, self.epoch = step, epoch
        self._unused_step = self._unused_epoch = -1
        self._counter = None
        self._first_logged.clear()

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as plain values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "driven": self.has_driver,
            "fresh_step": self._unused_step,
            "fresh_epoch": self._unused_epoch,
            "in_steps": self.step_driver is not None and self.active_loops > 0,
            "in_epochs": self.epoch_driver is not None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a `state()`.

        If it was taken inside a `steps()` loop, the epoch was incomplete: `epochs()` resumes it.
        """
        self.move_past(check_step(state["step"]), check_step(state["epoch"], "epoch"))
        self.has_driver = self.has_driver or bool(state["driven"])
        self._unused_step, self._unused_epoch = state["fresh_step"], state["fresh_epoch"]
        if state.get("in_steps") and state.get("in_epochs"):
            self._unused_epoch = self.epoch

    def _find_counter(self, names: Collection[str]) -> None:
        """Make the first of `names` that was logged before at this step the counter."""
        for name in names:
            if self._first_logged.get(name) == self.step:
                self._counter, self._counter_step = name, self.step
                _log.info(
                    "%r counts the steps: each further value of it advances the step by one. To "
                    "count otherwise, pass step= or loop over bus.steps()",
                    name,
                )
                return
            self._first_logged[name] = self.step

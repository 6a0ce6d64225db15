"""Decisions from logged values: when to stop training, and whether a value is the best so far.

`EarlyStopping` and `Best` each watch one metric and remember its best value. With several ranks,
the first rank checks its value and decides, and the other ranks receive its decision, so that all
ranks leave a loop together. Every rank must make the same calls.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from metricbus._bus.scope import Scope
from metricbus._common.distributed import agree
from metricbus._common.records import Number
from metricbus._common.throttled_log import OnceLogger
from metricbus._common.validation import check_name, to_number

if TYPE_CHECKING:
    from metricbus._bus.bus import MetricBus

Mode: TypeAlias = Literal["min", "max"]
"""Whether the smallest or the largest value is the best."""

_log = logging.getLogger("metricbus.decisions")

_MAX_EMPTY_CHECKS = 3  # before the first value; then a warning is logged
_MAX_LISTED_NAMES = 20  # in a warning


class TrackedBest(NamedTuple):
    """The best value so far, its step and epoch, and the number of checks since then."""

    best: Number | None = None
    step: int | None = None
    epoch: int | None = None
    waited: int = 0


class _BestTracker:
    """The best value of one name, the same on every rank."""

    def __init__(self, bus: MetricBus | Scope, name: str, mode: str, min_delta: float) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f'mode= must be "min" or "max", not {mode!r}')
        self._bus: Any = bus
        self._name = check_name(name)
        if isinstance(bus, Scope):
            # Use the bus itself, so that a phase's default definition does not reduce decisions.
            self._bus, self._name = bus._bus, bus._prefix + name
        self._mode = mode
        self._min_delta = min_delta
        self._empty_checks = 0
        self._once = OnceLogger(_log)
        self._tracked = TrackedBest()

    def _check(self, value: object, *, is_final: bool = False) -> bool:
        """Update `_tracked`. Return whether a value was found and counted.

        A check that `is_final` changes nothing, but still synchronizes with the other ranks: they
        may not have stopped.
        """
        if isinstance(value, Mapping) and self._name not in value:
            self._warn_of_missing_name(value)
        own = [False, *self._tracked] if is_final else self._compare(value)
        has_value, *tracked = agree(own, timeout=self._bus._core.settings.sync_secs)
        self._tracked = TrackedBest(*tracked)
        if not has_value and self._tracked == TrackedBest():
            self._count_empty_check()
        return bool(has_value)

    def _log(self, values: Mapping[str, Any]) -> None:
        """Log at the current step, without advancing it."""
        self._bus.log(values, step=self._bus.step)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its step and epoch, and the checks since, for a checkpoint."""
        return {"name": self._name, "mode": self._mode, **self._tracked._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict()`. `patience` and `min_delta` are not part of it.

        Raises `ValueError` if `state` was not returned by `state_dict()`, or belongs to another
        name or mode.
        """
        missing = {"name", "mode", *TrackedBest._fields} - set(state)
        if missing:
            raise ValueError(
                "load_state_dict() needs a state that state_dict() returned; this one lacks "
                f"{', '.join(sorted(missing))}"
            )
        if (state["name"], state["mode"]) != (self._name, self._mode):
            raise ValueError(
                f"the state belongs to {state['name']!r} with mode={state['mode']!r}, but this "
                f"object watches {self._name!r} with mode={self._mode!r}"
            )
        self._tracked = TrackedBest(*(state[field] for field in TrackedBest._fields))

    def _compare(self, value: object) -> list[Any]:
        """Return whether there is a value to check, followed by the new fields of `_tracked`."""
        if isinstance(value, Mapping):
            value = value.get(self._name)
        elif value is None:
            value = self._bus.last(self._name)
        if value is None:
            return [False, *self._tracked]
        number = to_number(self._name, value)
        if self._is_better(number):
            return [True, number, self._bus.step, self._bus.epoch, 0]
        return [True, *self._tracked._replace(waited=self._tracked.waited + 1)]

    def _is_better(self, number: Number) -> bool:
        best = self._tracked.best
        if best is None:
            best = math.inf if self._mode == "min" else -math.inf
        if self._mode == "min":
            return number < best - self._min_delta
        return number > best + self._min_delta

    def _warn_of_missing_name(self, values: Mapping[str, Any]) -> None:
        names = ", ".join(map(repr, list(values)[:_MAX_LISTED_NAMES])) or "nothing"
        if self._bus.last(self._name) is None:
            reason = "nothing has been logged under this name"
        else:
            reason = (
                "it is logged, but not reduced over the epoch. Call without an argument, or use "
                f"bus.define({self._name!r}, on_epoch=True)"
            )
        self._once.warn(
            "%r is not among the values passed to the check, which are: %s; %s",
            self._name,
            names,
            reason,
        )

    def _count_empty_check(self) -> None:
        self._empty_checks += 1
        if self._empty_checks == _MAX_EMPTY_CHECKS:
            _log.warning(
                "%d checks have found no value of %r. Either nothing has been logged under this "
                "name, or it is reduced over an epoch that has not ended, or the bus is off (then "
                "pass the number)",
                self._empty_checks,
                self._name,
            )


class EarlyStopping(_BestTracker):
    """Checks whether a metric has stopped improving.

    stopping = EarlyStopping(bus, "val/loss", patience=3)
    for epoch in bus.epochs(100):
        train_and_validate()
        if stopping(bus.end_epoch()):
            break

    Call it once per check, usually once an epoch:

    - `stopping(bus.end_epoch())` ends the epoch and checks the value that was reduced over it.
    - `stopping()` checks `bus.last(name)`, the newest value. In the body of a `bus.epochs()` loop,
      use it for values that are logged unreduced. A value reduced over the epoch exists only once
      the epoch has ended: after the body, or when the body calls `bus.end_epoch()`. Until then,
      `bus.last` returns the value of the previous epoch. (With `define(every=n)`, a reduced value
      becomes available a fraction of a second after the n-th value is logged.)
    - `stopping(0.31)` checks this number, whatever has been logged.

    A value is an improvement if it is better than the best one by more than `min_delta`: smaller
    for `mode="min"`, larger for `mode="max"`. NaN is never an improvement. After `patience` checks
    in a row without an improvement, this and every later call returns True. A check that finds no
    value does not count. `bus.last` is always None if `bus.is_on` is False; pass the number then.
    `best` is the last value that was an improvement in this sense.

    Each check logs `early_stopping/<name>/best`, `…/waited` (the number of checks since the best
    value) and `…/stopped` (0 or 1) at the current step.

    Raises `ValueError` for a `patience` below 1, a `min_delta` that is negative or not finite, or
    an unknown `mode`.
    """

    def __init__(
        self,
        bus: MetricBus | Scope,
        name: str,
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Mode = "min",
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience= must be an int of 1 or more (checks), not {patience!r}")
        delta = float(to_number("min_delta=", min_delta))
        if not 0 <= delta < math.inf:
            raise ValueError(
                f"min_delta= must be a finite number of 0 or more, not {min_delta!r}; mode= "
                "decides whether smaller or larger values are better"
            )
        super().__init__(bus, name, mode, delta)
        self._patience = patience

    def __call__(self, value: object = None) -> bool:
        """Check a value, as described for the class. Return whether training should stop.

        Raises `TypeError` if the value is not a number, and `RankError` if another rank does not
        make the same call in time.
        """
        if self._check(value, is_final=self.stopped):
            self._log_decision()
        return self.stopped

    @property
    def best(self) -> Number | None:
        """The best value so far, or None before the first one."""
        return self._tracked.best

    @property
    def best_step(self) -> int | None:
        """The current step at the time of the check that found the best value."""
        return self._tracked.step

    @property
    def waited(self) -> int:
        """The number of checks since the best value."""
        return self._tracked.waited

    @property
    def stopped(self) -> bool:
        """Whether training should stop."""
        return self.waited >= self._patience

    def _log_decision(self) -> None:
        decision = {"waited": self.waited, "stopped": self.stopped}
        best = {} if self.best is None else {"best": self.best}
        self._log({f"early_stopping/{self._name}": best | decision})


class Best(_BestTracker):
    """Checks whether a value is the best so far, for example to save a checkpoint.

    best = Best(bus, "val/acc", mode="max")
    for epoch in bus.epochs(10):
        train_and_validate()
        if best(bus.end_epoch()):
            torch.save(model.state_dict(), "best.pt")

    `bus.end_epoch()` returns the values reduced over the epoch; `best` checks the one called
    `name`. `best()` checks `bus.last(name)`, and `best(0.93)` checks the given number; see
    `EarlyStopping` for when to use which. `mode` is "max" if larger values are better, as for an
    accuracy, and "min" for a loss. NaN and a value equal to the best one are not better. A better
    value is logged as `best/<name>` at the current step.
    """

    def __init__(self, bus: MetricBus | Scope, name: str, *, mode: Mode) -> None:
        super().__init__(bus, name, mode, 0.0)

    def __call__(self, value: object = None) -> bool:
        """Check a value, as described for the class. Return whether it is the best so far.

        Raises `TypeError` if the value is not a number, and `RankError` if another rank does not
        make the same call in time.
        """
        is_best = self._check(value) and self._tracked.waited == 0
        if is_best:
            self._log({f"best/{self._name}": self.value})
        return is_best

    @property
    def value(self) -> Number | None:
        """The best value so far, or None before the first one."""
        return self._tracked.best

    @property
    def step(self) -> int | None:
        """The current step at the time of the check that found the best value."""
        return self._tracked.step

    @property
    def epoch(self) -> int | None:
        """The current epoch at the time of the check that found the best value."""
        return self._tracked.epoch

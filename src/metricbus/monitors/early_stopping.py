"""Decisions by the values that a bus gives back: when to stop, and whether this is the best so far.

Both look at one name and remember its best value. Under several ranks the first one looks and
decides, and the others are told, so that no rank leaves a loop in which the others go on: every
rank makes the same calls.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from metricbus._bus.scope import Scope
from metricbus._common.distributed import agree
from metricbus._common.records import Number
from metricbus._common.validation import check_name, to_number

if TYPE_CHECKING:
    from metricbus._bus.bus import MetricBus

Mode: TypeAlias = Literal["min", "max"]
"""Whether the smallest or the largest value is the best."""

_log = logging.getLogger("metricbus.decisions")

_PATIENCE_WITH_NOTHING = 3  # checks that find no value before the first one, until that is told
_MOST_NAMES = 20  # that a warning tells


class Standing(NamedTuple):
    """The best value so far, where the run stood when it was found, and the checks since then."""

    best: Number | None = None
    step: int | None = None
    epoch: int | None = None
    waited: int = 0


class EarlyStopping:
    """Says when a value has stopped getting better.

    stopping = EarlyStopping(bus, "val/loss", patience=3)
    for epoch in bus.epochs(100):
        train_and_validate()
        if stopping(bus.end_epoch()):
            break

    Each call is a check, made once an epoch as a rule:

    - `stopping()` looks at `bus.last(name)`, the newest value. In the body of a `bus.epochs()` loop
      that is right for a value that is logged as it is. One that is reduced over the epoch comes
      into being when the epoch ends, after the body: there `bus.last` still has the epoch before.
      (One that is reduced over a window comes a fraction of a second after its last value.)
    - `stopping(bus.end_epoch())` ends the epoch and looks at what was reduced over it.
    - `stopping(0.31)` looks at this number, whatever has been logged.

    The value has got better when it is beyond the best one by more than `min_delta`, below it for
    `mode="min"` and above it for `mode="max"`; NaN never is. After `patience` checks in a row
    without that, the call returns True, and so does every later one. A check that finds no value
    counts for nothing. Where the bus is off, `bus.last` has none: give the number.

    Each check logs, at the current step, `early_stopping/<name>/best`, `…/waited` (the checks since
    the best one) and `…/stopped` (0 or 1).
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
                f"min_delta= must be a finite number from 0 on, not {min_delta!r}; "
                "which way is better is said by mode="
            )
        self._tracker = _Tracker(bus, name, mode, delta)
        self._patience = patience

    def __call__(self, value: object = None) -> bool:
        """Checks `value` as the class says; whether training should stop.

        Raises `TypeError` for a value that is no number, and whatever meeting the other ranks does.
        """
        if self._tracker.check(value, over=self.stopped):
            self._tell()
        return self.stopped

    @property
    def best(self) -> Number | None:
        """The best value so far; None before the first one."""
        return self._tracker.standing.best

    @property
    def best_step(self) -> int | None:
        """The bus's step at the check that found the best value."""
        return self._tracker.standing.step

    @property
    def waited(self) -> int:
        """How many checks have been made since the best value."""
        return self._tracker.standing.waited

    @property
    def stopped(self) -> bool:
        """Whether training should stop."""
        return self.waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """The best value and the checks since, as plain values for the training's checkpoint."""
        return self._tracker.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; `patience` and `min_delta` are those given here.

        Raises `ValueError` for what `state_dict` did not give, or gave for another name or mode.
        """
        self._tracker.restore(state)

    def _tell(self) -> None:
        decision = {"waited": self.waited, "stopped": self.stopped}
        best = {} if self.best is None else {"best": self.best}
        self._tracker.log({f"early_stopping/{self._tracker.name}": best | decision})


class Best:
    """Says whether a value is the best so far, for saving a checkpoint.

    best = Best(bus, "val/acc")
    for epoch in bus.epochs(10):
        train_and_validate()
        if best(bus.end_epoch()):
            torch.save(model.state_dict(), "best.pt")

    `best()` looks at `bus.last(name)`, `best(bus.end_epoch())` at what was reduced over the epoch
    and `best(0.93)` at this number; which of them is right where is told at `EarlyStopping`.
    `mode` is "max" for what should be large, such as an accuracy, "min" for a loss. The first
    finite number is the best; NaN and an equal value never are. A value that is better is logged as
    `best/<name>`, at the current step.
    """

    def __init__(self, bus: MetricBus | Scope, name: str, *, mode: Mode = "max") -> None:
        self._tracker = _Tracker(bus, name, mode, 0.0)

    def __call__(self, value: object = None) -> bool:
        """Checks `value` as the class says; whether it is better than all before.

        Raises `TypeError` for a value that is no number, and whatever meeting the other ranks does.
        """
        improved = self._tracker.check(value) and self._tracker.standing.waited == 0
        if improved:
            self._tracker.log({f"best/{self._tracker.name}": self.value})
        return improved

    @property
    def value(self) -> Number | None:
        """The best value so far; None before the first one."""
        return self._tracker.standing.best

    @property
    def step(self) -> int | None:
        """The bus's step at the check that found it."""
        return self._tracker.standing.step

    @property
    def epoch(self) -> int | None:
        """The bus's epoch at the check that found it."""
        return self._tracker.standing.epoch

    def state_dict(self) -> dict[str, Any]:
        """The best value and where it was found, as plain values for the training's checkpoint."""
        return self._tracker.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises `ValueError` for what `state_dict` did not give, or gave for another name or mode.
        """
        self._tracker.restore(state)


class _Tracker:
    """Where one name stands, the same on every rank."""

    def __init__(self, bus: MetricBus | Scope, name: str, mode: str, min_delta: float) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f'mode= must be "min" or "max", not {mode!r}')
        self._bus, self.name = _whole(bus, check_name(name))
        self._mode = mode
        self._min_delta = min_delta
        self._found_nothing = 0
        self._told_of_lack = False
        self.standing = Standing()

    def check(self, value: object, *, over: bool = False) -> bool:
        """Brings `standing` up to date; whether there was a value to check, and it is not `over`.

        Asks the other ranks in any case, even when it is over: they may not know.
        """
        if isinstance(value, Mapping) and self.name not in value:
            self._complain_of_lack(value)
        seen = [False, *self.standing] if over else self._looked(value)
        checked, *standing = agree(seen, timeout=self._bus._settings.sync_secs)
        self.standing = Standing(*standing)
        if not checked and self.standing == Standing():
            self._complain_of_nothing()
        return bool(checked)

    def log(self, values: Mapping[str, Any]) -> None:
        """Logs at the current step, which it never moves."""
        self._bus.log(values, step=self._bus.step)

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {"name": self.name, "mode": self._mode, **self.standing._asdict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Becomes what it was when `state` was taken."""
        missing = {"name", "mode", *Standing._fields} - set(state)
        if missing:
            raise ValueError(f"not what state_dict() gave: it lacks {', '.join(sorted(missing))}")
        here = (self.name, self._mode)
        if (state["name"], state["mode"]) != here:
            raise ValueError(
                f"the state is of {state['name']!r} with mode={state['mode']!r}, this is for "
                f"{here[0]!r} with mode={here[1]!r}; load it where it was taken"
            )
        self.standing = Standing(*(state[field] for field in Standing._fields))

    def _looked(self, value: object) -> list[Any]:
        """Whether there is a value to check, and the standing with it."""
        number = self._number_of(value)
        if number is None:
            return [False, *self.standing]
        if self._is_better(number):
            return [True, number, self._bus.step, self._bus.epoch, 0]
        return [True, *self.standing._replace(waited=self.standing.waited + 1)]

    def _number_of(self, value: object) -> Number | None:
        if isinstance(value, Mapping):
            value = value.get(self.name)
        elif value is None:
            value = self._bus.last(self.name)
        return None if value is None else to_number(self.name, value)

    def _is_better(self, number: Number) -> bool:
        best = self.standing.best
        if best is None:
            best = math.inf if self._mode == "min" else -math.inf
        if self._mode == "min":
            return number < best - self._min_delta
        return number > best + self._min_delta

    def _complain_of_lack(self, values: Mapping[str, Any]) -> None:
        """Once: what was given does not have the name."""
        if self._told_of_lack:
            return
        self._told_of_lack = True
        names = ", ".join(map(repr, list(values)[:_MOST_NAMES])) or "nothing"
        if self._bus.last(self.name) is None:
            why = "nothing has been logged under it"
        else:
            why = (
                "it is logged, and not reduced over the epoch: call without an argument, or "
                f"bus.define({self.name!r}, on_epoch=True)"
            )
        _log.warning("%r is not in what was given, which has %s; %s", self.name, names, why)

    def _complain_of_nothing(self) -> None:
        self._found_nothing += 1
        if self._found_nothing == _PATIENCE_WITH_NOTHING:
            _log.warning(
                "%d checks have found no value of %r: nothing has been logged under this name, it "
                "is reduced over an epoch that has not ended, or the bus is off (give the number)",
                self._found_nothing,
                self.name,
            )


def _whole(bus: MetricBus | Scope, name: str) -> tuple[Any, str]:
    """The bus itself and what it calls `name`, so that a phase's defaults reduce no decision."""
    if isinstance(bus, Scope):
        return bus._bus, bus._prefix + name
    return bus, name

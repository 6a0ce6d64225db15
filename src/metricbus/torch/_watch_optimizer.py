"""Learning rates as they are used, and the step that counts real optimizer steps.

The optimizer calls a hook after each step that it makes; nothing of it is replaced, and neither its
`state_dict()` nor its pickle has anything of the hook. A step that `GradScaler` leaves out does not
come here, but for fused optimizers: of those only the device knows whether a step was skipped, and
what it says is looked at when it has come over with what was logged.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import bus_first
from metricbus._bus.scope import Scope
from metricbus._common.clock import Clock, check_every, clock_of
from metricbus._common.device_values import Pending, spread
from metricbus._common.handle import HookHandle
from metricbus._common.throttled_log import ThrottledLogger
from metricbus.torch._hook_registry import Registration

_log = logging.getLogger("metricbus.torch")

DRIVER = "watch_optimizer(advance=True)"
"""What moves the step, as errors call it."""

SKIPPED = "amp/skipped"
SCALE = "amp/scale"

_MOST_UNKNOWN = 1024  # steps of which the device has not said yet whether they were skipped

Group: TypeAlias = dict[str, Any]


@bus_first("watch_optimizer(bus, optimizer)")
def watch_optimizer(
    bus: MetricBus | Scope,
    optimizer: Optimizer,
    *,
    advance: bool = False,
    momentum: bool = False,
    weight_decay: bool = False,
    every: int = 1,
) -> OptimizerWatch:
    """Logs each parameter group's learning rate at every `every`-th optimizer step.

    It is the rate with which that step was made: `lr` where there is one group without a name, else
    `lr/<name>` with the group's `"name"`, or its number. `momentum` (also Adam's first beta) and
    `weight_decay` are logged alike on request. Rates that are tensors are not waited for.

    With `advance=True` each real optimizer step moves the bus's step by one, after its rates were
    logged; then the step is the number of optimizer steps made, however many batches went into
    each. Log a batch's loss before the optimizer's step. A step that `GradScaler` skips does not
    count. Of a fused optimizer on an accelerator this is known a moment later: the count is put
    right by holding the step still at a later move, and a bus that is off does not do so.

    Of fused optimizers under `GradScaler`, `amp/skipped` (0 or 1) and `amp/scale` are logged too.

    Returns a handle: `remove()`, or the end of its `with` block, takes the hook away. A second one
    beside it, for the same optimizer and names, logs all twice, and warns.

    Raises `TypeError` for what is no optimizer, `ValueError` for a quantity that it does not have,
    and `RuntimeError` if something else moves the step already.
    """
    wanted = ["lr"] + ["momentum"] * momentum + ["weight_decay"] * weight_decay
    _check_optimizer(optimizer, wanted)
    every = check_every(every)
    return OptimizerWatch(bus, optimizer, wanted, every, StepCounter(bus) if advance else None)


class OptimizerWatch(HookHandle):
    """What `watch_optimizer` returns; a context manager."""

    def __init__(
        self,
        bus: MetricBus | Scope,
        optimizer: Optimizer,
        wanted: Sequence[str],
        every: int,
        counter: StepCounter | None,
    ) -> None:
        self._bus = bus
        self._wanted = wanted
        self._every = every
        self._counter = counter
        self._made = 0
        self._complaints = ThrottledLogger(_log)
        # In a compiled step it is called, rather than traced anew whenever a number has changed.
        hook = torch.compiler.disable(self._after_step)  # type: ignore[no-untyped-call]
        self._hook = optimizer.register_step_post_hook(hook)
        self._registration = Registration("watch_optimizer()", bus, optimizer, wanted)

    def _end(self, error: BaseException | None) -> None:
        self._hook.remove()
        self._registration.end()
        if self._counter is not None:
            self._counter.stop()
            self._counter = None

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        row = _amp_of(optimizer)
        skipped = row.get(SKIPPED, 0.0)
        if self._made % self._every == 0:
            row |= _quantities_of(optimizer.param_groups, self._wanted)
        self._made += 1
        try:
            self._bus.log(row, step=self._bus.step)  # said outright, so that it never moves it
        except (TypeError, ValueError) as error:  # an optimizer may keep anything in its groups
            self._complaints.warn("watch_optimizer() cannot log: %s", error)
        if self._counter is not None:
            self._counter.count(skipped)


class StepCounter:
    """Moves the bus's step by one for each optimizer step that was not skipped.

    Raises `RuntimeError` if something else moves the step.
    """

    def __init__(self, bus: MetricBus | Scope) -> None:
        self._bus = bus
        self._clock: Clock | None = None
        self._unknown: deque[Pending] = deque(maxlen=_MOST_UNKNOWN)
        self._ahead = 0  # moves for steps that turned out to be skipped
        self._take_over()

    def count(self, skipped: float | Pending) -> None:
        """Counts a step; `skipped` is 0 if it was made, or is to come over from the device."""
        clock = self._take_over()
        self._settle()
        if isinstance(skipped, Pending):
            if self._bus.is_on:  # else nothing brings it over
                self._unknown.append(skipped)
        elif skipped:
            return
        if self._ahead:
            self._ahead -= 1
        else:
            clock.advance(1)

    def stop(self) -> None:
        """Others may move the step again."""
        if self._clock is not None:
            self._clock.step_driver = None
            self._clock = None

    def _take_over(self) -> Clock:
        """The clock, whose driver this is; `configure()` gives the process-wide bus a new one."""
        clock = clock_of(self._bus)
        if clock is not self._clock:
            clock.hand_to(DRIVER)
            self._clock = clock
        return clock

    def _settle(self) -> None:
        """Looks, without waiting, at what has come over."""
        for _ in range(len(self._unknown)):
            pending = self._unknown.popleft()
            if pending.snapshot.numbers is not None:
                self._ahead += bool(pending.number())
            elif pending.snapshot.error is None:
                self._unknown.append(pending)


def _check_optimizer(optimizer: object, wanted: Sequence[str]) -> None:
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):  # nor has a wrapper that is one
        inner = getattr(optimizer, "optimizer", None)
        hint = "; give its .optimizer" if isinstance(inner, Optimizer) else ""
        raise TypeError(
            f"watch_optimizer() takes a torch.optim.Optimizer, not {type(optimizer).__name__}{hint}"
        )
    assert isinstance(optimizer, Optimizer)
    for quantity in wanted[1:]:
        if all(_QUANTITIES[quantity](group) is None for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has no {quantity}; leave out {quantity}=True"
            )


def _momentum(group: Group) -> Any:
    betas = group.get("betas")
    return betas[0] if betas else group.get("momentum")


_QUANTITIES: dict[str, Callable[[Group], Any]] = {
    "lr": lambda group: group.get("lr"),
    "momentum": _momentum,
    "weight_decay": lambda group: group.get("weight_decay"),
}


def _quantities_of(groups: Sequence[Group], wanted: Sequence[str]) -> dict[str, Any]:
    """What is logged of the groups, by name; a group leaves out what it does not have."""
    labels = _labels_of(groups)
    return {
        quantity + label: value
        for quantity in wanted
        for label, group in zip(labels, groups, strict=True)
        if (value := _QUANTITIES[quantity](group)) is not None
    }


def _labels_of(groups: Sequence[Group]) -> list[str]:
    """What tells the groups apart; a name that several have does so with the group's number."""
    if len(groups) == 1 and not groups[0].get("name"):
        return [""]
    names = [str(group.get("name") or number) for number, group in enumerate(groups)]
    times = Counter(names)
    return [
        f"/{name}" if times[name] == 1 else f"/{name}/{number}" for number, name in enumerate(names)
    ]


def _amp_of(optimizer: Optimizer) -> dict[str, Any]:
    """What `GradScaler` gives a fused optimizer while it makes a step; nothing of all others."""
    found = getattr(optimizer, "found_inf", None)
    if not isinstance(found, torch.Tensor):
        return {}
    flag = found.detach().reshape(1).clamp(max=1.0)  # it is the sum over several devices
    scale = getattr(optimizer, "grad_scale", None)
    if not isinstance(scale, torch.Tensor):  # the gradients were unscaled before the step
        return spread([SKIPPED], flag)
    return spread([SKIPPED, SCALE], torch.cat([flag, scale.detach().reshape(1).to(flag)]))

"""`watch_optimizer`: log learning rates, and count real optimizer steps.

The hook is registered with the optimizer, which calls it after each step; it appears in neither
`state_dict()` nor pickles. A step that `GradScaler` skips does not call the hook. The exception are
fused optimizers: only the device knows whether their step was skipped, so the flag is evaluated
when it has been copied to the host together with other logged values.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import requires_bus
from metricbus._bus.scope import Scope
from metricbus._common.clock import Clock, check_every, get_clock
from metricbus._common.device_values import DeviceValue, named_values
from metricbus._common.handle import HookHandle
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._compat.torch import amp_tensors
from metricbus.torch._hook_registry import HookRegistration, log_row

_log = logging.getLogger("metricbus.torch")

DRIVER = "watch_optimizer(advance=True)"
"""The name of this step driver in errors."""

SKIPPED = "amp/skipped"
SCALE = "amp/scale"

# Steps for which it is not yet known whether the device skipped them; older ones are forgotten.
_MAX_UNRESOLVED = 1024

ParamGroup: TypeAlias = dict[str, Any]


@requires_bus("watch_optimizer(bus, optimizer)")
def watch_optimizer(
    bus: MetricBus | Scope,
    optimizer: Optimizer,
    *,
    advance: bool = False,
    momentum: bool = False,
    weight_decay: bool = False,
    every: int = 1,
) -> OptimizerWatch:
    """Log the learning rate of each parameter group, once every `every` optimizer steps.

    The rate is the one that the step used. It is logged as `lr` if there is a single group
    without a name, else as `lr/<name>` with the group's `"name"` or its index. `momentum` (or
    Adam's first beta) and `weight_decay` are logged in the same way if requested. The hook does not
    synchronize with the device for rates that are tensors.

    With `advance=True`, each real optimizer step advances the bus's step by one, after its rates
    have been logged. The step then equals the number of optimizer steps, regardless of gradient
    accumulation; log a batch's loss before `optimizer.step()`. Steps that `GradScaler` skips do not
    count. With a fused optimizer on an accelerator, a skipped step is detected only later. The
    bus's step is then one too high until a later optimizer step, which does not advance it. If not
    `bus.is_on`, it stays one too high.

    For fused optimizers with `GradScaler`, `amp/skipped` (0 or 1) and `amp/scale` are also logged.

    Returns a handle. Call its `remove()`, or use it as a context manager, to remove the hook. A
    warning is logged if another hook already logs the same metrics of this optimizer.

    Raises `TypeError` if `optimizer` is not a `torch.optim.Optimizer`, `ValueError` if it lacks a
    requested quantity, and `RuntimeError` if something else already advances the step.
    """
    quantities = ["lr"] + ["momentum"] * momentum + ["weight_decay"] * weight_decay
    _check_optimizer(optimizer, quantities)
    every = check_every(every)
    return OptimizerWatch(bus, optimizer, quantities, every, StepCounter(bus) if advance else None)


class OptimizerWatch(HookHandle):
    """Handle of `watch_optimizer`; a context manager."""

    def __init__(
        self,
        bus: MetricBus | Scope,
        optimizer: Optimizer,
        quantities: Sequence[str],
        every: int,
        counter: StepCounter | None,
    ) -> None:
        self._bus = bus
        self._quantities = quantities
        self._every = every
        self._counter = counter
        self._steps = 0
        self._throttled = ThrottledLogger(_log)
        # A compiled step calls the hook; tracing it would recompile for every new step number.
        hook = torch.compiler.disable(self._after_step)  # type: ignore[no-untyped-call]
        self._hook = optimizer.register_step_post_hook(hook)
        self._registration = HookRegistration("watch_optimizer()", bus, optimizer, quantities)

    def _end(self, error: BaseException | None) -> None:
        self._hook.remove()
        self._registration.end()
        if self._counter is not None:
            self._counter.stop()
            self._counter = None

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        row = _amp_values(optimizer)
        skipped = row.get(SKIPPED, 0.0)
        if self._steps % self._every == 0:
            row |= _quantities_of(optimizer.param_groups, self._quantities)
        self._steps += 1
        try:
            log_row(self._bus, row)
        except (TypeError, ValueError) as error:  # param groups may hold values of any type
            self._throttled.warn("watch_optimizer() cannot log: %s", error)
        if self._counter is not None:
            self._counter.count(skipped)


class StepCounter:
    """Advances the bus's step by one for each optimizer step that was not skipped.

    Raises `RuntimeError` if something else advances the step.
    """

    def __init__(self, bus: MetricBus | Scope) -> None:
        self._bus = bus
        self._clock: Clock | None = None
        self._unresolved: deque[DeviceValue] = deque(maxlen=_MAX_UNRESOLVED)
        # Steps that were counted and turned out to be skipped.
        self._overcount = 0
        self._claim_clock()

    def count(self, skipped: float | DeviceValue) -> None:
        """Count a step. `skipped` is 0 if it was made, or pending while only the device knows."""
        clock = self._claim_clock()
        self._resolve_skips()
        if isinstance(skipped, DeviceValue):
            # A bus that is off never copies the flag to the host.
            if self._bus.is_on:
                self._unresolved.append(skipped)
        elif skipped:
            return
        if self._overcount:
            self._overcount -= 1
        else:
            clock.advance(1)

    def stop(self) -> None:
        """Let others advance the step again."""
        if self._clock is not None:
            self._clock.step_driver = None
            self._clock = None

    def _claim_clock(self) -> Clock:
        """Become the driver of the bus's clock; `configure()` may have replaced the clock."""
        clock = get_clock(self._bus)
        if clock is not self._clock:
            clock.set_step_driver(DRIVER)
            self._clock = clock
        return clock

    def _resolve_skips(self) -> None:
        """Evaluate the flags that have been copied to the host, without waiting for others."""
        for _ in range(len(self._unresolved)):
            pending = self._unresolved.popleft()
            if pending.source.numbers is not None:
                self._overcount += bool(pending.number())
            elif pending.source.error is None:
                self._unresolved.append(pending)


def _check_optimizer(optimizer: object, quantities: Sequence[str]) -> None:
    try:
        if not isinstance(optimizer, Optimizer):
            raise AttributeError
        optimizer.register_step_post_hook(lambda *_: None).remove()
    except AttributeError:  # of a wrapper that subclasses Optimizer without calling its constructor
        inner = getattr(optimizer, "optimizer", None)
        hint = "; pass its .optimizer" if isinstance(inner, Optimizer) else ""
        raise TypeError(
            f"watch_optimizer() takes a torch.optim.Optimizer, not {type(optimizer).__name__}{hint}"
        ) from None
    for quantity in quantities[1:]:
        if all(_QUANTITIES[quantity](group) is None for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has no {quantity}; leave out {quantity}=True"
            )


_QUANTITIES: dict[str, Callable[[ParamGroup], Any]] = {
    "lr": lambda group: group.get("lr"),
    "momentum": lambda group: (group.get("betas") or [group.get("momentum")])[0],
    "weight_decay": lambda group: group.get("weight_decay"),
}


def _quantities_of(groups: Sequence[ParamGroup], quantities: Sequence[str]) -> dict[str, Any]:
    """Return the groups' quantities by metric name, without those that a group lacks."""
    suffixes = _suffixes(groups)
    return {
        quantity + suffix: value
        for quantity in quantities
        for suffix, group in zip(suffixes, groups, strict=True)
        if (value := _QUANTITIES[quantity](group)) is not None
    }


def _suffixes(groups: Sequence[ParamGroup]) -> list[str]:
    """Return a metric name suffix for each group; a name used twice is followed by the index."""
    if len(groups) == 1 and not groups[0].get("name"):
        return [""]
    names = [str(group.get("name") or index) for index, group in enumerate(groups)]
    counts = Counter(names)
    return [
        f"/{name}" if counts[name] == 1 else f"/{name}/{index}" for index, name in enumerate(names)
    ]


def _amp_values(optimizer: Optimizer) -> dict[str, Any]:
    """Return what `GradScaler` sets on a fused optimizer during a step; empty for all others."""
    found_inf, scale = amp_tensors(optimizer)
    if found_inf is None:
        return {}
    # The flag is a sum over devices.
    skipped = found_inf.detach().reshape(1).clamp(max=1.0)
    if scale is None:
        return named_values([SKIPPED], skipped)
    return named_values(
        [SKIPPED, SCALE], torch.cat([skipped, scale.detach().reshape(1).to(skipped)])
    )

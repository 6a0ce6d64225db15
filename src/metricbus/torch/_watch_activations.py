"""`watch_activations`: log statistics of module outputs on every n-th forward pass.

Between logged passes the model has a single hook, which counts. On a logged pass each watched
module gets a temporary hook that measures its output on the device, without synchronizing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import requires_bus
from metricbus._bus.scope import Scope
from metricbus._common.clock import check_every
from metricbus._common.device_values import named_values
from metricbus._common.handle import HookHandle
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._compat.torch import is_compiled
from metricbus.torch._activation_stats import STATS, activation_stats, first_tensor, is_measurable
from metricbus.torch._hook_registry import HookRegistration, log_row
from metricbus.torch._modules import named_modules, unwrap_checked

_log = logging.getLogger("metricbus.torch")

_LISTED_NAMES = 8

_UNUSED_WARNING = (
    "nothing was logged, because the hook was never called by a forward pass in training mode; it "
    "is not called by graphs of torch.compile, by calls of submodules, or after model.eval(); call "
    "the model itself, in a run without torch.compile"
)


@requires_bus("watch_activations(bus, model)")
def watch_activations(
    bus: MetricBus | Scope,
    model: nn.Module,
    every: int = 100,
    modules: str | Collection[str] | None = None,
    stats: Sequence[str] = STATS,
    *,
    unit_dim: int = 1,
) -> ActivationWatch:
    """Log statistics of module outputs, once every `every` forward passes in training mode.

    The first pass is logged. `modules` is a glob or a list of globs for the names of
    `model.named_modules()`; by default all modules without submodules are watched. The statistics
    are computed from the first tensor in a module's output, which may have any shape and any real
    dtype. They are logged as `activations/<module>/<stat>`, at the bus's current step:

    - `mean` and `std` (population standard deviation) of all elements;
    - `zeros`, the fraction of elements that are exactly 0, from 0 to 1;
    - `dead`, the fraction of units whose elements are 0 in the whole batch. A unit is an index into
      dimension `unit_dim` of the output: 1 by default, as in (batch, channels, height, width) and
      (batch, features); pass -1 for (batch, time, features). `dead` is left out if `unit_dim` is 0,
      the batch, or does not exist in the output.

    For a module that is called several times in one pass, the mean over its calls is logged. The
    hook never synchronizes with the device. The model can be copied and pickled while it is
    watched; copies are not watched.

    Returns a handle. Call its `remove()`, or use it as a context manager, to restore the model.

    A warning is logged if the handle is removed, or the run is closed, before any forward pass has
    called the hook (for example because the model was compiled), and if another hook already logs
    the same statistics of the model.

    Raises `TypeError` if the model is compiled or scripted, because its calls skip hooks, or is
    sharded over ranks; `ValueError` for module names without a match and for unknown `stats`.
    """
    _reject_compiled(model)
    root = unwrap_checked("watch_activations()", model)
    checked_stats = _check_stats(stats)
    if type(unit_dim) is not int or unit_dim == 0:
        raise ValueError(
            f"unit_dim= must be a nonzero int such as 1 or -1, not {unit_dim!r}; 0 is the batch"
        )
    watched = _select_modules(root, modules)
    every = check_every(every)
    names = [f"{name}/{stat}" for name in watched for stat in checked_stats]
    measure = partial(activation_stats, checked_stats, unit_dim)
    return ActivationWatch(bus, root, watched, measure, every, names=names)


class ActivationWatch(HookHandle):
    """Handle of `watch_activations`; a context manager."""

    def __init__(
        self,
        bus: MetricBus | Scope,
        root: nn.Module,
        watched: Mapping[str, nn.Module],
        measure: Callable[[Tensor], dict[str, Tensor]],
        every: int,
        *,
        names: Sequence[str],
    ) -> None:
        bus.log({})  # opens the default bus
        self._bus = bus
        self._watched = watched
        self._measure = measure
        self._every = every
        self._registration = HookRegistration(
            "watch_activations()", bus, root, names, _UNUSED_WARNING
        )
        self._passes = 0
        self._throttled = ThrottledLogger(_log)
        # Values by metric name, and temporary hooks, of the current forward pass.
        self._results: dict[str, list[Tensor]] = {}
        self._pass_hooks: list[RemovableHandle] = []
        self._hook = root.register_forward_pre_hook(_UncopiedHook(self._before_forward))

    def _end(self, error: BaseException | None) -> None:
        self._hook.remove()
        self._reset_pass()
        self._registration.end(error)

    def _before_forward(self, root: nn.Module, inputs: object) -> None:
        # If the model is compiled after this call, the hooks must stay out of the graph.
        if torch.compiler.is_compiling():
            return
        # A previous pass that raised has left its hooks behind.
        self._reset_pass()
        if not root.training or self._bus.run is None:
            return
        self._registration.was_called = True
        self._passes += 1
        if (self._passes - 1) % self._every:
            return
        for name, module in self._watched.items():
            hook = _UncopiedHook(partial(self._measure_output, name))
            self._pass_hooks.append(module.register_forward_hook(hook))
        self._pass_hooks.append(root.register_forward_hook(_UncopiedHook(self._after_forward)))

    def _measure_output(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        tensor = first_tensor(output)
        if tensor is None or not is_measurable(tensor):
            return
        try:
            with torch.no_grad():
                results = self._measure(tensor.detach())
        except Exception as error:  # such as a tensor subclass that lacks an operation
            self._throttled.warn("watch_activations() cannot measure %r: %s", name, error)
            return
        prefix = f"activations/{name}/" if name else "activations/"
        for stat, value in results.items():
            self._results.setdefault(prefix + stat, []).append(value)

    def _after_forward(self, root: nn.Module, inputs: object, output: object) -> None:
        results = self._results
        self._reset_pass()
        try:
            with torch.no_grad():
                log_row(self._bus, _row_of(results))
        except Exception as error:
            self._throttled.warn("watch_activations() cannot log: %s", error)

    def _reset_pass(self) -> None:
        for hook in self._pass_hooks:
            hook.remove()
        self._pass_hooks = []
        self._results = {}


class _UncopiedHook:
    """A hook that copies and pickles of the model replace by one that does nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _UncopiedHook, (_do_nothing,)


def _do_nothing(*args: object) -> None:
    pass


def _reject_compiled(model: object) -> None:
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        what = f"its module {name!r}" if name else "the model"
        if is_compiled(module) or isinstance(module, torch.jit.ScriptModule):
            kind = "compiled" if is_compiled(module) else "scripted"
            raise TypeError(
                f"watch_activations() cannot watch {what}: it is {kind}, and {kind} calls skip "
                "hooks; watch the model in a run without torch.compile and torch.jit"
            )


def _check_stats(stats: Sequence[str]) -> tuple[str, ...]:
    checked = (stats,) if isinstance(stats, str) else tuple(stats)
    if not checked or not set(checked) <= set(STATS):
        raise ValueError(f"stats= must be some of {', '.join(STATS)}, not {stats!r:.80}")
    return checked


def _select_modules(
    root: nn.Module, patterns: str | Collection[str] | None
) -> dict[str, nn.Module]:
    """Return the modules to watch, by name."""
    known = dict(named_modules(root))
    if patterns is None:
        return {
            name: module for name, module in known.items() if next(module.children(), None) is None
        }
    selected: dict[str, nn.Module] = {}
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        if not isinstance(pattern, str):
            raise TypeError(
                f"modules= takes globs and names, not {type(pattern).__name__}; "
                'pass a string such as "encoder.*", or a list of strings'
            )
        matching = {name: known[name] for name in known if fnmatchcase(name, pattern)}
        if not matching:
            names = ", ".join(list(filter(None, known))[:_LISTED_NAMES])
            hint = (
                f"its modules are {names}"
                if names
                else "it has no submodules; leave out modules= to watch the model itself"
            )
            raise ValueError(f"no module of the model matches modules={pattern!r}; {hint}")
        selected |= matching
    return selected


def _row_of(results: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """Return the row to log; values on one device are stacked and copied together."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, values in results.items():
        value = values[0] if len(values) == 1 else torch.stack(list(values)).mean()
        by_device.setdefault(value.device, {})[name] = value
    row: dict[str, Any] = {}
    for device_values in by_device.values():
        row |= named_values(list(device_values), torch.stack(list(device_values.values())))
    return row

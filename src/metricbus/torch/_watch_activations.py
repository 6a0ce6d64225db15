"""What modules put out: looked at in one forward out of many, where it is, and without waiting.

Between times the model has one hook, which counts. A forward that is due gets a hook on each module
that is watched, for as long as it lasts.
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
from metricbus._bus.hook_arguments import bus_first
from metricbus._bus.scope import Scope
from metricbus._common.clock import check_every
from metricbus._common.device_values import spread
from metricbus._common.handle import HookHandle
from metricbus._common.throttled_log import ThrottledLogger
from metricbus.torch._activation_stats import STATS, is_measurable, measured, tensors_in
from metricbus.torch._hook_registry import Registration
from metricbus.torch._modules import checked, named_modules

_log = logging.getLogger("metricbus.torch")

_TOLD_NAMES = 8

_SILENCE = (
    "it has seen no forward of the model in training mode, and has logged nothing: calls that "
    "torch.compile has compiled, calls of modules inside the model, and calls after model.eval() "
    "are not seen; call the model itself, in a run without torch.compile"
)


@bus_first("watch_activations(bus, model)")
def watch_activations(
    bus: MetricBus | Scope,
    model: nn.Module,
    every: int = 100,
    modules: str | Collection[str] | None = None,
    stats: Sequence[str] = STATS,
    *,
    unit_dim: int = 1,
) -> ActivationWatch:
    """Logs what the modules put out, in every `every`-th forward in training mode, the first too.

    `modules` is a glob, or a list of globs and names, for names as in `named_modules()`; left out,
    all that have no modules inside. Of each one's output (the first tensor in it, of any shape and
    real type) it logs, as `activations/<module>/<stat>`:

    - `mean` and `std` (of the population) of all elements;
    - `zeros`, the share of elements that are exactly 0, from 0 to 1;
    - `dead`, the share of units whose elements are 0 in the whole batch. A unit is a place in
      dimension `unit_dim` of the output: 1 by default, as in (batch, channels, height, width) and
      (batch, features); write -1 for (batch, time, features). An output with one dimension, or
      without that one, has no `dead`.

    A module that is called several times in one forward gives the mean over its calls. Nothing
    waits for the device. The model can be copied and pickled meanwhile; copies are not watched.

    Returns a handle: `remove()`, or the end of its `with` block, leaves the model as it was.

    If it has seen no forward by the time it ends or the run is closed, it warns: a model that is
    compiled elsewhere does not call the hook. So it does when outputs of the same model are watched
    already.

    Raises `TypeError` for a model whose calls are compiled or scripted, since these do not see such
    hooks, or that is spread over ranks; `ValueError` for names that match no module and for
    unknown `stats`.
    """
    _refuse_compiled(model)
    root = checked("watch_activations()", model)
    wanted = _check_stats(stats)
    if type(unit_dim) is not int or unit_dim == 0:
        raise ValueError(f"unit_dim= is 1, 2, … or -1, -2, …, not {unit_dim!r}; 0 is the batch")
    chosen = _chosen(root, modules)
    every = check_every(every)
    names = [f"{name}/{stat}" for name in chosen for stat in wanted]
    measure = partial(measured, wanted, unit_dim)
    return ActivationWatch(bus, root, chosen, measure, every, names=names)


class ActivationWatch(HookHandle):
    """What `watch_activations` returns; a context manager."""

    def __init__(
        self,
        bus: MetricBus | Scope,
        root: nn.Module,
        chosen: Mapping[str, nn.Module],
        measure: Callable[[Tensor], dict[str, Tensor]],
        every: int,
        *,
        names: Sequence[str],
    ) -> None:
        bus.log({})  # has the process-wide bus look at the environment
        self._bus = bus
        self._chosen = chosen
        self._measure = measure
        self._every = every
        self._registration = Registration("watch_activations()", bus, root, names, _SILENCE)
        self._forwards = 0
        self._found: dict[str, list[Tensor]] = {}  # of this forward, by the metric's name
        self._hooks: list[RemovableHandle] = []  # for this forward
        self._complaints = ThrottledLogger(_log)
        self._hook = root.register_forward_pre_hook(_Hook(self._before))

    def _end(self, error: BaseException | None) -> None:
        self._hook.remove()
        self._unhook()
        self._registration.end(error)

    def _before(self, root: nn.Module, inputs: object) -> None:
        if torch.compiler.is_compiling():  # the model was compiled later: no graph has this hook
            return
        self._unhook()  # what is left of a forward that raised
        if not root.training or self._bus.run is None:
            return
        self._registration.has_seen = True
        self._forwards += 1
        if (self._forwards - 1) % self._every:
            return
        for name, module in self._chosen.items():
            hook = _Hook(partial(self._look_at, name))
            self._hooks.append(module.register_forward_hook(hook))
        self._hooks.append(root.register_forward_hook(_Hook(self._after)))

    def _look_at(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        tensor = next(tensors_in(output), None)
        if tensor is None or not is_measurable(tensor):
            return
        try:
            with torch.no_grad():
                found = self._measure(tensor.detach())
        except Exception as error:  # there are more kinds of tensors than anybody knows
            self._complaints.warn("watch_activations() cannot measure %r: %s", name, error)
            return
        prefix = f"activations/{name}/" if name else "activations/"
        for stat, value in found.items():
            self._found.setdefault(prefix + stat, []).append(value)

    def _after(self, root: nn.Module, inputs: object, output: object) -> None:
        found = self._found
        self._unhook()
        try:
            with torch.no_grad():
                self._bus.log(_as_row(found), step=self._bus.step)  # said, so that none is moved
        except Exception as error:  # a training must not end for this
            self._complaints.warn("watch_activations() cannot log: %s", error)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._found = {}


class _Hook:
    """A hook that a copy of the model does not have: there, one that does nothing stands for it."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nothing,)


def _nothing(*args: object) -> None:
    """What the hook of a copy does."""


def _refuse_compiled(model: object) -> None:
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        what = f"its module {name!r}" if name else "the model"
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise TypeError(
                f"watch_activations() takes a model that is not compiled, but {what} is: compiled "
                "calls do not see the hooks; watch the model in a run without torch.compile"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"watch_activations() takes a model in Python, but {what} is scripted, and its "
                "calls do not see the hooks; watch the model before torch.jit makes that of it"
            )


def _check_stats(stats: Sequence[str]) -> tuple[str, ...]:
    wanted = (stats,) if isinstance(stats, str) else tuple(stats)
    if not wanted or not set(wanted) <= set(STATS):
        raise ValueError(f"stats= takes some of {', '.join(STATS)}, not {stats!r:.80}")
    return wanted


def _chosen(root: nn.Module, patterns: str | Collection[str] | None) -> dict[str, nn.Module]:
    """The modules to watch, by their names."""
    known = dict(named_modules(root))
    if patterns is None:
        return {
            name: module for name, module in known.items() if next(module.children(), None) is None
        }
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"modules= takes globs and names, not {type(pattern).__name__}; "
                'write "encoder.*", or a list of such'
            )
        matching = {name: known[name] for name in known if fnmatchcase(name, pattern)}
        if not matching:
            raise ValueError(f"modules= has {pattern!r}, which no module matches; {_told(known)}")
        chosen |= matching
    return chosen


def _told(known: Collection[str]) -> str:
    """What could be asked for instead."""
    inside = list(filter(None, known))
    if not inside:
        return "the model has no modules inside; leave out modules= to watch the model itself"
    return f"there is: {', '.join(inside[:_TOLD_NAMES])}"


def _as_row(found: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """What is logged: for each device one tensor, of which each name gets a number."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, values in found.items():
        value = values[0] if len(values) == 1 else torch.stack(list(values)).mean()
        by_device.setdefault(value.device, {})[name] = value
    row: dict[str, Any] = {}
    for values_there in by_device.values():
        row |= spread(list(values_there), torch.stack(list(values_there.values())))
    return row

"""`watch`: gradients and parameters as the optimizer sees them, at every n-th of its steps."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import bus_first
from metricbus._bus.scope import Scope
from metricbus._common.clock import check_every
from metricbus._common.handle import HookHandle
from metricbus.media.histogram_group import Histograms
from metricbus.torch._hook_registry import Registration
from metricbus.torch._modules import checked
from metricbus.torch._optimizer_hooks import leave, listen, tidy_up
from metricbus.torch._param_ownership import Share, Shares
from metricbus.torch._tensor_stats import (
    copies_of,
    divided,
    gradients_of,
    nonfinite_of,
    norms_of,
    plain,
    ratios_of,
)

_log = logging.getLogger("metricbus.torch")

_CHOICES = ("gradients", "parameters", "all")

_SILENCE = (
    "no optimizer that has parameters of the model has made a step through "
    "torch.optim.Optimizer.step(), and nothing was logged; watch the very model whose parameters "
    "the optimizer was given, not a copy of it"
)


@bus_first("watch(bus, model)")
def watch(
    bus: MetricBus | Scope,
    model: nn.Module,
    *,
    every: int = 100,
    log: Literal["gradients", "parameters", "all"] = "gradients",
    norms: bool = True,
    histograms: bool = True,
    bins: int = 64,
) -> ModelWatch:
    """Logs a model's gradients, parameters or both at every `every`-th step of an optimizer.

    Each optimizer that has parameters of the model counts its own steps, from its first one, which
    is logged. The gradients are what the optimizer sees: accumulated over batches, reduced over
    ranks, unscaled, clipped. What is logged, at the bus's current step, which never moves by it:

    * `gradients/<name>` and `parameters/<name>`: histograms of `bins` bins, 1 to 4,096;
    * `grad_norm/<name>` and `param_norm/<name>`: 2-norms, and that of all as one as `…/total`; of
      the second optimizer's as `…/total_2`, and so on;
    * with gradients' norms, `nonfinite/<name>`: the number of elements that are NaN or infinite;
    * with parameters' norms, `update_ratio/<name>`: the norm of what the step changed, divided by
      the norm of the weight before it (NaN if that was 0). It takes a copy of the weights.

    Parameters are told as they are before the step, and have the names that the user knows, without
    those of DDP and torch.compile. Those without a gradient, and those that no optimizer has, are
    left out; shared ones come once; complex ones as pairs of numbers. Nobody waits for the device.

    The model gets no hook, stays picklable, and is held by a weak reference: when it is gone, the
    watch ends. A step that fails in here is warned of once, and training goes on. So is a watch for
    which no optimizer has made a step by the time it ends or the run is closed, and a second one of
    the same model and names beside it.

    Returns a handle: `remove()`, or the end of its `with` block, ends the watch.

    Raises `TypeError` for what is no module, and for a model of which a rank has only a part
    (FSDP, DTensor); `ValueError` for `every`, `log` or `bins` that make no sense.
    """
    own = checked("watch()", model)
    if log not in _CHOICES:
        raise ValueError(f"log= is one of {', '.join(map(repr, _CHOICES))}, not {log!r:.60}")
    if not (norms or histograms):
        raise ValueError("watch() has nothing to log; leave norms=True or histograms=True")
    Histograms({}, bins)._capture("watch()")  # which checks the bins
    wanted = _Wanted(
        every=check_every(every),
        gradients=log != "parameters",
        parameters=log != "gradients",
        norms=norms,
        histograms=histograms,
        bins=bins,
    )
    return ModelWatch(bus, own, wanted)


class _Wanted(NamedTuple):
    """What is to be logged, and how often."""

    every: int
    gradients: bool
    parameters: bool
    norms: bool
    histograms: bool
    bins: int

    def prefixes(self) -> list[str]:
        """What tells two watches of a model apart: what the names begin with."""
        return (
            ["gradients"] * (self.gradients and self.histograms)
            + ["grad_norm"] * (self.gradients and self.norms)
            + ["parameters"] * (self.parameters and self.histograms)
            + ["param_norm"] * (self.parameters and self.norms)
        )


class ModelWatch(HookHandle):
    """What `watch` returns; a context manager."""

    def __init__(self, bus: MetricBus | Scope, model: nn.Module, wanted: _Wanted) -> None:
        self._bus = bus
        self._wanted = wanted
        self._shares = Shares(model)
        self._made: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._due: dict[int, _Due] = {}  # by the id of an optimizer that is at work on its step
        self._told: set[str] = set()
        self._registration = Registration("watch()", bus, model, wanted.prefixes(), _SILENCE)
        listen(self)

    def before_step(self, optimizer: Optimizer, *, has_closure: bool) -> None:
        """Counts the step; tells what there is before it, if it is due."""
        if self._due:
            self._due.pop(id(optimizer), None)  # of a step that failed
        made = self._made.get(optimizer, 0)
        self._made[optimizer] = made + 1
        if made % self._wanted.every == 0:
            try:
                self._begin(optimizer, has_closure)
            except Exception as error:  # training goes on, whatever this is
                self._tell_error(error)

    def after_step(self, optimizer: Optimizer) -> None:
        """Tells what there is only after a step that was due."""
        due = self._due.pop(id(optimizer), None) if self._due else None
        if due is not None:
            try:
                self._finish(optimizer, due)
            except Exception as error:
                self._tell_error(error)

    def _end(self, error: BaseException | None) -> None:
        leave(self)
        tidy_up()
        self._due.clear()
        self._registration.end(error)

    def _begin(self, optimizer: Optimizer, has_closure: bool) -> None:
        if self._shares.are_gone:
            leave(self)
            return
        share = self._shares.of(optimizer)
        if not share.parameters:
            return
        self._registration.has_seen = True
        if not self._is_on():
            return
        if _is_capturing():
            self._tell("a CUDA graph is being captured, whose replays would log nothing")
            return
        with torch.no_grad():
            weights = {name: plain(p) for name, p in share.parameters.items()}
            before: dict[str, Tensor] = {}
            if self._wanted.parameters:
                self._log_parameters(weights, share)
                before = copies_of(weights) if self._wanted.norms else {}
            late = self._wanted.gradients and has_closure
            if self._wanted.gradients and not late:
                self._log_gradients(optimizer, share)
        if before or late:
            self._due[id(optimizer)] = _Due(share, before, late)

    def _finish(self, optimizer: Optimizer, due: _Due) -> None:
        with torch.no_grad():
            if due.gradients:
                self._log_gradients(optimizer, due.share)
            if due.before:
                weights = {name: plain(p) for name, p in due.share.parameters.items()}
                self._put(_prefixed("update_ratio", ratios_of(due.before, weights)))

    def _log_gradients(self, optimizer: Optimizer, share: Share) -> None:
        gradients, left_out = gradients_of(share.parameters)
        for name in left_out:
            self._tell(f"the gradient of {name} is left out: it is sparse, on an accelerator")
        scale = getattr(optimizer, "grad_scale", None)  # there while a fused optimizer unscales
        if isinstance(scale, Tensor):
            gradients = divided(gradients, scale)
        if not gradients:
            return
        if self._wanted.norms:
            norms = norms_of(gradients, share.total)
            nonfinite = nonfinite_of(gradients, norms)
            self._put(_prefixed("grad_norm", norms) | _prefixed("nonfinite", nonfinite))
        if self._wanted.histograms:
            self._put({"gradients": Histograms(gradients, self._wanted.bins)})

    def _log_parameters(self, weights: Mapping[str, Tensor], share: Share) -> None:
        if self._wanted.norms:
            self._put(_prefixed("param_norm", norms_of(weights, share.total)))
        if self._wanted.histograms:
            self._put({"parameters": Histograms(weights, self._wanted.bins)})

    def _put(self, row: dict[str, Any]) -> None:
        self._bus.log(row, step=self._bus.step)  # said outright, so that it never moves it

    def _is_on(self) -> bool:
        if self._bus.run is None:
            self._bus.log({})  # the process-wide bus opens at its first call
        return self._bus.run is not None

    def _tell_error(self, error: Exception) -> None:
        kind = type(error).__name__
        self._tell(
            f"something of a step is not logged, and training goes on: {kind}: {error}", kind
        )

    def _tell(self, what: str, about: str = "") -> None:
        """Warns, once about the same."""
        self._registration.has_seen = True  # or what is told says why not
        if (about or what) not in self._told:
            self._told.add(about or what)
            _log.warning("watch(): %s", what)


class _Due(NamedTuple):
    """What is to be told after a step: the gradients, and the change of the weights `before`."""

    share: Share
    before: dict[str, Tensor]
    gradients: bool


def _is_capturing() -> bool:
    cuda: Any = torch.cuda  # not typed; the first question is for builds without CUDA
    return cuda.is_initialized() and bool(cuda.is_current_stream_capturing())


def _prefixed(prefix: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": number for name, number in numbers.items()}

"""`watch`: log gradients and parameters, as the optimizer sees them, on every n-th of its steps."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import requires_bus
from metricbus._bus.scope import Scope
from metricbus._common.clock import check_every
from metricbus._common.handle import HookHandle
from metricbus._common.throttled_log import OnceLogger
from metricbus._compat.torch import amp_tensors
from metricbus.media.histogram_group import HistogramGroup
from metricbus.torch import _tensor_stats as stats
from metricbus.torch._hook_registry import HookRegistration, log_row
from metricbus.torch._modules import unwrap_checked
from metricbus.torch._optimizer_hooks import add_listener, remove_listener, remove_unused_hooks
from metricbus.torch._param_ownership import OwnedParameters, ParameterOwnership

_log = logging.getLogger("metricbus.torch")

_CHOICES = ("gradients", "parameters", "all")

_UNUSED_WARNING = (
    "nothing was logged, because no optimizer with parameters of this model has made a step with "
    "torch.optim.Optimizer.step(); watch the model whose parameters were passed to the optimizer, "
    "not a copy of it"
)


@requires_bus("watch(bus, model)")
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
    """Log a model's gradients, parameters, or both, once every `every` optimizer steps.

    Each optimizer that has parameters of the model counts its own steps; its first step is logged.
    Gradients are recorded as the optimizer sees them: accumulated over batches, reduced over ranks,
    unscaled and clipped. The values are logged at the bus's current step, which they never advance:

    * `gradients/<name>` and `parameters/<name>`: histograms with `bins` bins (1 to 4,096);
    * `grad_norm/<name>` and `param_norm/<name>`: 2-norms; `…/total` is the norm over all parameters
      of the optimizer that steps first, `…/total_2` of the one that steps second, and so on;
    * `nonfinite/<name>`, logged with gradient norms: the number of NaN and infinite elements;
    * `update_ratio/<name>`, logged with parameter norms: the norm of the change made by the step,
      divided by the norm of the weight before it (NaN if that is 0). Needs a copy of the weights.

    Parameter values are recorded before the optimizer step, under the names of the unwrapped module
    (without DDP or `torch.compile` prefixes). Parameters without a gradient, or not managed by any
    optimizer, are skipped. Shared parameters are recorded once; complex ones as real and imaginary
    parts. Logging never synchronizes with the device.

    No hook is added to the model, so it can still be pickled. The watch keeps only a weak reference
    to it and ends when the model is garbage-collected. An error while a step is being logged is
    reported once as a warning and does not stop training. A warning is also logged if no
    optimizer step happens before the watch or the run ends, or if another watch already logs the
    same metrics of the model.

    Returns a handle. Call its `remove()`, or use it as a context manager, to end the watch.

    Raises `TypeError` if `model` is not a module or is sharded over ranks (FSDP, DTensor), and
    `ValueError` for an invalid `every`, `log` or `bins`.
    """
    module = unwrap_checked("watch()", model)
    if log not in _CHOICES:
        raise ValueError(f"log= must be one of {', '.join(map(repr, _CHOICES))}, not {log!r:.60}")
    if not (norms or histograms):
        raise ValueError("watch() has nothing to log; pass norms=True or histograms=True")
    HistogramGroup({}, bins)._capture("watch()")  # checks the bins
    options = _WatchOptions(
        every=check_every(every),
        gradients=log != "parameters",
        parameters=log != "gradients",
        norms=norms,
        histograms=histograms,
        bins=bins,
    )
    return ModelWatch(bus, module, options)


class _WatchOptions(NamedTuple):
    """What to log, and how often."""

    every: int
    gradients: bool
    parameters: bool
    norms: bool
    histograms: bool
    bins: int

    def prefixes(self) -> list[str]:
        """Return the name prefixes of the metrics, which identify duplicate watches."""
        return (
            ["gradients"] * (self.gradients and self.histograms)
            + ["grad_norm"] * (self.gradients and self.norms)
            + ["parameters"] * (self.parameters and self.histograms)
            + ["param_norm"] * (self.parameters and self.norms)
        )


class _StartedStep(NamedTuple):
    """An optimizer step that is in progress and has values to log after it.

    `weights_before` is empty unless update ratios are logged; `log_gradients` is set if a closure
    computes the gradients during the step.
    """

    owned: OwnedParameters
    weights_before: dict[str, Tensor]
    log_gradients: bool


class ModelWatch(HookHandle):
    """Handle of `watch`; a context manager."""

    def __init__(self, bus: MetricBus | Scope, model: nn.Module, options: _WatchOptions) -> None:
        self._bus = bus
        self._options = options
        self._ownership = ParameterOwnership(model)
        self._step_counts: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._started: dict[int, _StartedStep] = {}  # by optimizer id
        self._once = OnceLogger(_log)
        names = options.prefixes()
        self._registration = HookRegistration("watch()", bus, model, names, _UNUSED_WARNING)
        add_listener(self)

    def before_step(self, optimizer: Optimizer, *, has_closure: bool) -> None:
        """Count the step; if it is to be logged, log what is known before it."""
        if self._started:
            # An entry remains if the previous step raised.
            self._started.pop(id(optimizer), None)
        count = self._step_counts.get(optimizer, 0)
        self._step_counts[optimizer] = count + 1
        if count % self._options.every == 0:
            try:
                self._start_step(optimizer, has_closure)
            except Exception as error:
                self._warn_of_error(error)

    def after_step(self, optimizer: Optimizer) -> None:
        """Log what is only known after the step."""
        started = self._started.pop(id(optimizer), None) if self._started else None
        if started is not None:
            try:
                self._finish_step(optimizer, started)
            except Exception as error:
                self._warn_of_error(error)

    def _end(self, error: BaseException | None) -> None:
        remove_listener(self)
        remove_unused_hooks()
        self._started.clear()
        self._registration.end(error)

    def _start_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        owned = self._ownership.of(optimizer)
        if owned is None:
            remove_listener(self)
            return
        if not owned.parameters:
            return
        self._registration.was_called = True
        if not self._is_bus_on():
            return
        if _is_capturing():
            self._warn_once("skipped a step during CUDA graph capture: replays would log nothing")
            return
        with torch.no_grad():
            before: dict[str, Tensor] = {}
            if self._options.parameters:
                weights = _weights(owned)
                self._log_stats(weights, owned, "param_norm", "parameters")
                before = stats.copy_tensors(weights) if self._options.norms else {}
            log_gradients = self._options.gradients and has_closure
            if self._options.gradients and not has_closure:
                self._log_gradients(optimizer, owned)
        if before or log_gradients:
            self._started[id(optimizer)] = _StartedStep(owned, before, log_gradients)

    def _finish_step(self, optimizer: Optimizer, step: _StartedStep) -> None:
        with torch.no_grad():
            if step.log_gradients:
                self._log_gradients(optimizer, step.owned)
            if step.weights_before:
                ratios = stats.update_ratios(step.weights_before, _weights(step.owned))
                log_row(self._bus, _prefixed("update_ratio", ratios))

    def _log_gradients(self, optimizer: Optimizer, owned: OwnedParameters) -> None:
        gradients, left_out = stats.collect_gradients(owned.parameters)
        for name in left_out:
            self._warn_once(f"skipped the gradient of {name}: it is sparse and on an accelerator")
        _, scale = amp_tensors(optimizer)
        if scale is not None:
            gradients = stats.divide_tensors(gradients, scale)
        if gradients:
            self._log_stats(gradients, owned, "grad_norm", "gradients")

    def _log_stats(
        self, tensors: Mapping[str, Tensor], owned: OwnedParameters, norm: str, histogram: str
    ) -> None:
        if self._options.norms:
            norms = stats.norms_of(tensors, owned.total_name)
            row = _prefixed(norm, norms)
            if norm == "grad_norm":
                row |= _prefixed("nonfinite", stats.nonfinite_counts(tensors, norms))
            log_row(self._bus, row)
        if self._options.histograms:
            log_row(self._bus, {histogram: HistogramGroup(tensors, self._options.bins)})

    def _is_bus_on(self) -> bool:
        if self._bus.run is None:
            self._bus.log({})  # opens the default bus
        return self._bus.run is not None

    def _warn_of_error(self, error: Exception) -> None:
        kind = type(error).__name__
        self._warn_once(f"failed to log a step; training continues: {kind}: {error}", kind)

    def _warn_once(self, message: str, key: str = "") -> None:
        """Log a warning, once for each key; the default key is the message."""
        # This warning explains why nothing was logged; the one about an unused hook is redundant.
        self._registration.was_called = True
        self._once.warn("watch(): %s", message, key=key or message)


def _weights(owned: OwnedParameters) -> dict[str, Tensor]:
    return {name: stats.as_real(parameter) for name, parameter in owned.parameters.items()}


def _is_capturing() -> bool:
    # `is_current_stream_capturing` fails in builds without CUDA, which never initialize it.
    cuda: Any = torch.cuda
    return cuda.is_initialized() and bool(cuda.is_current_stream_capturing())


def _prefixed(prefix: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": number for name, number in numbers.items()}

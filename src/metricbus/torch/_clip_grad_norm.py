"""`clip_grad_norm_`: torch's gradient clipping, with the norms logged."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import requires_bus
from metricbus._bus.scope import Scope
from metricbus._common.device_values import named_values
from metricbus.torch._hook_registry import log_row
from metricbus.torch._modules import reject_sharded, reject_sharded_tensors

_TORCH_EPSILON = 1e-6
"""torch divides `max_norm` by the norm plus this number."""


@requires_bus("clip_grad_norm_(bus, parameters, max_norm)")
def clip_grad_norm_(  # noqa: PLR0917  # torch's argument order
    bus: MetricBus | Scope,
    parameters: nn.Module | Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    name: str = "clip",
) -> Tensor:
    """Clip gradients like `torch.nn.utils.clip_grad_norm_`, and log the norms.

    Logs `clip/norm_before`, `clip/norm_after` and `clip/clipped` (1 if the gradients were scaled
    down, else 0) at the bus's current step, without moving it. `name` replaces the prefix `clip`.
    The values are computed on the gradients' device, and the call does not synchronize with it.
    With GradScaler, call `scaler.unscale_(optimizer)` first, as for torch's function.

    `parameters` may also be a module; the other arguments are those of torch's function. With
    `error_if_nonfinite=True`, torch synchronizes with the device, and nothing is logged if the norm
    is not finite.

    Returns the norm before clipping as a zero-dimensional tensor. Raises what torch raises, and
    `TypeError` if the parameters are sharded over ranks.
    """
    if isinstance(parameters, nn.Module):
        reject_sharded("clip_grad_norm_()", parameters)
        parameters = parameters.parameters()
    if not isinstance(parameters, Tensor):
        parameters = list(parameters)  # the check would exhaust an iterator
        reject_sharded_tensors("clip_grad_norm_()", parameters)
    before = nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    if not bus.is_on:
        bus.log({})  # opens the default bus
    if bus.is_on:
        names = [f"{name}/norm_before", f"{name}/norm_after", f"{name}/clipped"]
        log_row(bus, named_values(names, _clip_stats(before.detach(), float(max_norm))))
    return before


def _clip_stats(before: Tensor, max_norm: float) -> Tensor:
    """Return the norm before, the norm after, and whether clipping took place; shape (3,)."""
    factor = (max_norm / (before + _TORCH_EPSILON)).clamp(max=1.0)
    return torch.stack([before, before * factor, (factor < 1).to(before)])

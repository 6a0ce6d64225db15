"""`clip_grad_norm_`: torch's own, which also says what it did."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metricbus._bus.bus import MetricBus
from metricbus._bus.hook_arguments import bus_first
from metricbus._bus.scope import Scope
from metricbus._common.device_values import spread
from metricbus.torch._modules import refuse_parts, refuse_sharded

_ROOM = 1e-6  # what torch adds to the norm before it divides by it


@bus_first("clip_grad_norm_(bus, parameters, max_norm)")
def clip_grad_norm_(  # noqa: PLR0917  # the order is torch's
    bus: MetricBus | Scope,
    parameters: nn.Module | Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    name: str = "clip",
) -> Tensor:
    """Clips gradients as `torch.nn.utils.clip_grad_norm_` does, and logs what it did.

    At the bus's current step, which never moves by it, stand `clip/norm_before`, `clip/norm_after`
    and `clip/clipped`, 1 if the gradients were made smaller, else 0; `name` is for others than
    `clip`. They are computed where the gradients are, and nobody waits for them. Under GradScaler,
    call `scaler.unscale_(optimizer)` before, as for torch's own.

    `parameters` may also be a model. Returns the norm before, a tensor with one element, as torch
    does, and raises what torch raises; with `error_if_nonfinite=True` it waits for the device, as
    torch does, and a norm that raises is not logged. Raises `TypeError` for parameters of which a
    rank has only a part.
    """
    if isinstance(parameters, nn.Module):
        refuse_sharded("clip_grad_norm_()", parameters)
        parameters = parameters.parameters()
    if not isinstance(parameters, Tensor):
        parameters = list(parameters)  # an iterator would be used up by the check
        refuse_parts("clip_grad_norm_()", parameters)
    before = nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    if not bus.is_on:
        bus.log({})  # the process-wide bus opens at its first call
    if bus.is_on:
        names = [f"{name}/{what}" for what in ("norm_before", "norm_after", "clipped")]
        bus.log(spread(names, _told(before, float(max_norm))), step=bus.step)
    return before


def _told(before: Tensor, max_norm: float) -> Tensor:
    """The norm before and after, and whether it was clipped, in one tensor with three elements."""
    before = before.detach()
    factor = (max_norm / (before + _ROOM)).clamp(max=1.0)
    return torch.stack([before, before * factor, (factor < 1).to(before)])

"""Norms and the like of many tensors in a few operations, without waiting for an accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from metricbus._common.device_values import ACCELERATORS, spread
from metricbus.media.histogram_batch_device import nonfinite_in

Numbers = dict[str, Any]
"""By the tensors' names: floats, or what `log()` takes of an accelerator."""


def plain(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers; others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def gradients_of(parameters: Mapping[str, nn.Parameter]) -> tuple[dict[str, Tensor], list[str]]:
    """The gradients that there are, plain, and of sparse ones the values; then the names of those
    that are left out, since an accelerator would be waited for: sparse ones there.
    """
    gradients: dict[str, Tensor] = {}
    left_out = []
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout == torch.sparse_coo and gradient.device.type not in ACCELERATORS:
            gradient = gradient.coalesce().values()
        if gradient.layout == torch.strided:
            gradients[name] = plain(gradient)
        else:
            left_out.append(name)
    return gradients, left_out


def norms_of(tensors: Mapping[str, Tensor], total: str) -> Numbers:
    """The 2-norm of each tensor, and, under the name `total`, of all as one; nothing of nothing."""
    norms: Numbers = {}
    by_device: list[Tensor] = []
    for names, alike in _alike(tensors):
        found = _norms(alike)
        norms |= spread(names, found)
        by_device.append(torch.linalg.vector_norm(found))
    if by_device:
        parts = [part.to(by_device[0], non_blocking=True) for part in by_device]
        whole = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))
        norms |= spread([total], whole.reshape(1))
    return norms


def nonfinite_of(tensors: Mapping[str, Tensor], norms: Numbers) -> Numbers:
    """How many elements of each tensor are NaN or infinite; of those whose norm is at hand and
    finite, none is.
    """
    counts: Numbers = {}
    for names, alike in _alike(tensors):
        if alike[0].device.type in ACCELERATORS:
            counts |= spread(names, nonfinite_in([tensor.reshape(-1) for tensor in alike]))
            continue
        for name, tensor in zip(names, alike, strict=True):
            is_clean = isfinite(norms[name])
            counts[name] = 0.0 if is_clean else float((~tensor.isfinite()).sum().item())
    return counts


def ratios_of(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Numbers:
    """The norm of each tensor's change, divided by its norm before; NaN if that was 0."""
    ratios: Numbers = {}
    for names, old in _alike(before):
        change = torch._foreach_sub([after[name] for name in names], old)
        norms = _norms(old)
        ratios |= spread(names, torch.where(norms > 0, _norms(change) / norms, torch.nan))
    return ratios


def copies_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors as they are now."""
    copies: dict[str, Tensor] = {}
    for names, alike in _alike(tensors):
        copies |= zip(names, torch._foreach_mul(alike, 1.0), strict=True)
    return copies


def divided(tensors: Mapping[str, Tensor], divisor: Tensor) -> dict[str, Tensor]:
    """The tensors divided by a number that is on a device, perhaps another one than theirs."""
    quotients: dict[str, Tensor] = {}
    for names, alike in _alike(tensors):
        factor = divisor.reshape(()).double().reciprocal()
        factor = factor.to(alike[0].device, torch.float32, non_blocking=True)
        quotients |= zip(names, torch._foreach_mul(alike, factor), strict=True)
    return quotients


def _alike(tensors: Mapping[str, Tensor]) -> list[tuple[list[str], list[Tensor]]]:
    """Names and tensors of one device and type together: one launch is for such alone."""
    groups: dict[Any, tuple[list[str], list[Tensor]]] = {}
    for name, tensor in tensors.items():
        names, alike = groups.setdefault((tensor.device, tensor.dtype), ([], []))
        names.append(name)
        alike.append(tensor)
    return list(groups.values())


def _norms(alike: Sequence[Tensor]) -> Tensor:
    """The norms in one tensor; of 16-bit floats as float32, since theirs are soon too large."""
    is_narrow = alike[0].is_floating_point() and alike[0].element_size() < 4
    return torch.stack(
        torch._foreach_norm(alike, 2, dtype=torch.float32 if is_narrow else None)  # type: ignore[arg-type]
    )

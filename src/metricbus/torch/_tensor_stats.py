"""Statistics of many tensors in a few kernel launches, without synchronizing with the device."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from metricbus._common.device_values import ACCELERATORS, named_values
from metricbus._compat import torch as compat
from metricbus.media.histogram_batch_device import count_nonfinite

Stats: TypeAlias = dict[str, Any]
"""One number per tensor, by name: a float, or for accelerators a value that `log()` accepts."""


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as pairs of real and imaginary parts, and a real one unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def collect_gradients(
    parameters: Mapping[str, nn.Parameter],
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the gradients by name as real tensors, and the names of those left out.

    Sparse gradients are represented by their values. On an accelerator they are left out, because
    coalescing them would synchronize with the device.
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
            gradients[name] = as_real(gradient)
        else:
            left_out.append(name)
    return gradients, left_out


def norms_of(tensors: Mapping[str, Tensor], total_name: str) -> Stats:
    """Return the 2-norm of each tensor and, as `total_name`, of all of them concatenated.

    The result is empty if there are no tensors.
    """
    norms: Stats = {}
    group_totals: list[Tensor] = []
    for names, group in _grouped(tensors):
        group_norms = _norms(group)
        norms |= named_values(names, group_norms)
        group_totals.append(torch.linalg.vector_norm(group_norms))
    if group_totals:
        parts = [part.to(group_totals[0], non_blocking=True) for part in group_totals]
        total = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))
        norms |= named_values([total_name], total.reshape(1))
    return norms


def nonfinite_counts(tensors: Mapping[str, Tensor], norms: Stats) -> Stats:
    """Return the number of NaN and infinite elements of each tensor.

    On the host, a tensor whose norm is finite is not scanned.
    """
    counts: Stats = {}
    for names, group in _grouped(tensors):
        if group[0].device.type in ACCELERATORS:
            counts |= named_values(names, count_nonfinite([tensor.reshape(-1) for tensor in group]))
            continue
        for name, tensor in zip(names, group, strict=True):
            is_finite = isfinite(norms[name])
            counts[name] = 0.0 if is_finite else float((~tensor.isfinite()).sum().item())
    return counts


def update_ratios(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Stats:
    """Return the norm of each tensor's change divided by its norm before; NaN if that is 0."""
    ratios: Stats = {}
    for names, group in _grouped(before):
        changes = compat.subtract([after[name] for name in names], group)
        norms = _norms(group)
        ratios |= named_values(names, torch.where(norms > 0, _norms([*changes]) / norms, torch.nan))
    return ratios


def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors."""
    copies: dict[str, Tensor] = {}
    for names, group in _grouped(tensors):
        copies |= zip(names, compat.multiply(group, 1.0), strict=True)
    return copies


def divide_tensors(tensors: Mapping[str, Tensor], divisor: Tensor) -> dict[str, Tensor]:
    """Return the tensors divided by a single number, which may be on another device."""
    quotients: dict[str, Tensor] = {}
    for names, group in _grouped(tensors):
        factor = divisor.reshape(()).double().reciprocal()
        factor = factor.to(group[0].device, torch.float32, non_blocking=True)
        quotients |= zip(names, compat.multiply(group, factor), strict=True)
    return quotients


def _grouped(tensors: Mapping[str, Tensor]) -> list[tuple[list[str], list[Tensor]]]:
    """Group names and tensors by device and dtype, so that each group needs one kernel launch."""
    groups: dict[Any, tuple[list[str], list[Tensor]]] = {}
    for name, tensor in tensors.items():
        names, group = groups.setdefault((tensor.device, tensor.dtype), ([], []))
        names.append(name)
        group.append(tensor)
    return list(groups.values())


def _norms(group: list[Tensor]) -> Tensor:
    """Return the 2-norms as one tensor; for 16-bit floats in float32, which avoids overflow."""
    is_narrow = group[0].is_floating_point() and group[0].element_size() < 4
    return torch.stack([*compat.norms(group, torch.float32 if is_narrow else None)])

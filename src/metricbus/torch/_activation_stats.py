"""Statistics of a module's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

STATS = ("mean", "std", "zeros", "dead")
"""The statistics that `activation_stats` can compute."""


def first_tensor(output: object) -> Tensor | None:
    """Return the first tensor in a module's output, searching mappings, lists and tuples."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, list | tuple):
        return None
    return next((tensor for item in output if (tensor := first_tensor(item)) is not None), None)


def is_measurable(tensor: Tensor) -> bool:
    """Check whether the tensor is dense, in memory, real and not empty."""
    is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
    return is_dense and not tensor.is_complex() and tensor.numel() > 0


def activation_stats(stats: Collection[str], unit_dim: int, output: Tensor) -> dict[str, Tensor]:
    """Compute each of `stats` as a zero-dimensional tensor on the output's device.

    `unit_dim` is the dimension of the units; negative values count from the end. `dead` is left out
    if the output does not have that dimension, or if it is dimension 0, the batch.
    """
    results: dict[str, Tensor] = {}
    if "mean" in stats or "std" in stats:
        is_precise = output.is_floating_point() and output.element_size() >= 4
        values = output if is_precise else output.float()
        results["std"], results["mean"] = torch.std_mean(values, correction=0)
    if "zeros" in stats:
        results["zeros"] = (output.numel() - output.count_nonzero()) / output.numel()
    unit_dim += output.ndim if unit_dim < 0 else 0
    if "dead" in stats and 0 < unit_dim < output.ndim:
        other_dims = [dim for dim in range(output.ndim) if dim != unit_dim]
        results["dead"] = (output.count_nonzero(other_dims) == 0).float().mean()
    return {stat: results[stat] for stat in stats if stat in results}

"""What a module puts out: the tensors in it, and the numbers that tell of one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor

STATS = ("mean", "std", "zeros", "dead")
"""What `measured` can tell."""


def tensors_in(output: object) -> Iterator[Tensor]:
    """The tensors in what a module returns, in their order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors_among(output.values())
    elif isinstance(output, list | tuple):
        yield from _tensors_among(output)


def _tensors_among(outputs: Iterable[object]) -> Iterator[Tensor]:
    for output in outputs:
        yield from tensors_in(output)


def is_measurable(tensor: Tensor) -> bool:
    """Whether it has elements in memory, and real ones."""
    is_plain = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
    return is_plain and not tensor.is_complex() and tensor.numel() > 0


def measured(wanted: Collection[str], unit_dim: int, output: Tensor) -> dict[str, Tensor]:
    """Each wanted number of `STATS`, as a tensor without dimensions where the output is.

    The units of an output are along `unit_dim`, which counts from the end if it is negative; one
    without that dimension has no `dead`.
    """
    found: dict[str, Tensor] = {}
    if "mean" in wanted or "std" in wanted:
        exact = output.is_floating_point() and output.element_size() >= 4
        std, mean = torch.std_mean(output if exact else output.float(), correction=0)
        found |= {"mean": mean, "std": std}
    if "zeros" in wanted:
        found["zeros"] = (output.numel() - output.count_nonzero()) / output.numel()
    units = unit_dim + output.ndim if unit_dim < 0 else unit_dim
    if "dead" in wanted and 0 < units < output.ndim:
        others = [dim for dim in range(output.ndim) if dim != units]
        found["dead"] = (output.count_nonzero(others) == 0).float().mean()
    return {stat: found[stat] for stat in wanted if stat in found}

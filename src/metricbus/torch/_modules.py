"""Models without the wrappers of `torch.compile`, DDP, `DataParallel` and activation checkpointing.

Classes of FSDP are looked up in `sys.modules`: a program that has not imported its module does not
use it, and importing it takes about a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from metricbus._compat.torch import wrapped_module

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module inside any number of wrappers."""
    while (inner := wrapped_module(model)) is not None:
        model = inner
    return model


def unwrap_checked(caller: str, model: object) -> nn.Module:
    """Return the user's module. `caller` names the function in errors.

    Raises `TypeError` if `model` is not a module, or if its parameters are sharded over ranks.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller} takes a torch.nn.Module, not {type(model).__name__} ({model!r:.60})"
        )
    reject_sharded(caller, model)
    return unwrap(model)


def reject_sharded(caller: str, model: nn.Module) -> None:
    """Raise `TypeError` if the model's parameters are sharded over ranks (FSDP, DTensor)."""
    kinds = tuple(_loaded_class("torch.distributed.fsdp", name) for name in _SHARDED)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            reason = f"{name or 'the model'} is sharded by {type(module).__name__}"
            raise _sharded_error(caller, reason)
    reject_sharded_tensors(caller, model.parameters())


def reject_sharded_tensors(caller: str, parameters: Iterable[Tensor]) -> None:
    """Raise `TypeError` if one of the parameters is a DTensor."""
    for parameter in parameters:
        if hasattr(parameter, "full_tensor"):
            shape, kind = tuple(parameter.shape), type(parameter).__name__
            raise _sharded_error(caller, f"a parameter of shape {shape} is a {kind}")


def _sharded_error(caller: str, reason: str) -> TypeError:
    return TypeError(
        f"{caller} needs parameters that are complete on each rank, but {reason}: this rank has "
        "only a shard, from which the norm or histogram of the whole cannot be computed. Gather "
        "the values, for example with parameter.full_tensor(), and log them with bus.log()"
    )


def named_modules(
    module: nn.Module, name: str = "", visited: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules like `torch.nn.Module.named_modules()`, without wrappers."""
    module = unwrap(module)
    visited = set() if visited is None else visited
    if module in visited:
        return
    visited.add(module)
    yield name, module
    for child_name, child in module.named_children():
        yield from named_modules(child, f"{name}.{child_name}" if name else child_name, visited)


def parameter_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the parameters with their unwrapped names; a shared one has the first of its names."""
    names: dict[nn.Parameter, str] = {}
    for prefix, module in named_modules(model):
        for name, parameter in module.named_parameters(prefix, recurse=False):
            names.setdefault(parameter, name)
    return names


def _loaded_class(module: str, name: str) -> Any:
    """Return a class, or an empty tuple (for `isinstance`) if its module is not imported."""
    return getattr(sys.modules.get(module), name, ())

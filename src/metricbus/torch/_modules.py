"""Modules as the user knows them: without the wrappers of torch.compile, DDP and the like.

The classes of wrappers are looked up in `sys.modules`: who never imported them has no such module,
and importing them would cost a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

_WRAPPERS = (  # the class, and the attribute that has the module inside
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "ActivationWrapper",
        "_checkpoint_wrapped_module",
    ),
)
_SHARDED = (
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DDP, DataParallel, in any order and depth."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def checked(what: str, model: object) -> nn.Module:
    """The user's own module; `TypeError` that names `what` if it is none, or is sharded."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{what} takes a torch.nn.Module, not {type(model).__name__} ({model!r:.60})"
        )
    refuse_sharded(what, model)
    return unwrapped(model)


def refuse_sharded(what: str, model: nn.Module) -> None:
    """`TypeError` that names `what` if ranks have only parts of the parameters (FSDP, DTensor)."""
    kinds = tuple(_found(module, name) for module, name in _SHARDED)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            raise _sharded(what, f"{name or 'the model'} is sharded by {type(module).__name__}")
    refuse_parts(what, model.parameters())


def refuse_parts(what: str, parameters: Iterable[Tensor]) -> None:
    """The same for parameters alone, as far as it shows."""
    for parameter in parameters:
        if hasattr(parameter, "full_tensor"):
            shape = tuple(parameter.shape)
            raise _sharded(what, f"one of shape {shape} is a {type(parameter).__name__}")


def _sharded(what: str, why: str) -> TypeError:
    return TypeError(
        f"{what} takes parameters that are whole on each rank, but {why}: this rank has "
        "only a part of them, and no part has the norm or the histogram of the whole; log what "
        "you gather yourself, such as parameter.full_tensor()"
    )


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The user's own modules with their names, each once; like torch's, without wrappers.

    The first is the model itself, named "".
    """
    yield from _walk(model, "", set())


def parameter_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """The name of each parameter as the user knows it; the first one of those that are shared."""
    names: dict[nn.Parameter, str] = {}
    for prefix, module in named_modules(model):
        for name, parameter in module.named_parameters(prefix, recurse=False):
            names.setdefault(parameter, name)
    return names


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    if module in seen:
        return
    seen.add(module)
    yield name, module
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def _inside(model: nn.Module) -> nn.Module | None:
    for module, name, attribute in _WRAPPERS:
        if isinstance(model, _found(module, name)):
            inner = getattr(model, attribute)
            return inner if isinstance(inner, nn.Module) else None
    return None


def _found(module: str, name: str) -> Any:
    """A class, or none, for `isinstance`."""
    return getattr(sys.modules.get(module), name, ())

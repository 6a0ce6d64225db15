"""torch: operations on many tensors, wrappers of models, `GradScaler`, the store of the ranks.

Nothing here imports torch at import; a caller has torch tensors, modules or process groups already.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metricbus._compat.degrade import degrading, report_change

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# The names under which torch.compile and checkpoint_wrapper() keep the user's module.
_COMPILED = "_orig_mod"
_WRAPPED = (_COMPILED, "_checkpoint_wrapped_module")
_WRAPPER_MODULES = ("torch._dynamo.", "torch.distributed.")


def default_store() -> Any:
    """Return the store that all ranks share."""
    with degrading(
        "torch",
        "torch.distributed.distributed_c10d._get_default_store",
        "errors do not name the ranks that are missing, and come after the timeout of torch",
    ):
        from torch.distributed.distributed_c10d import _get_default_store

        return _get_default_store()
    return None


def wrapped_module(model: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper; None if the model is not a wrapper."""
    from torch import nn

    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    children = dict(model.named_children())
    if len(children) != 1:
        return None
    ((name, child),) = children.items()
    if name in _WRAPPED:
        return child
    kind = type(model)
    if name.startswith("_") and kind.__module__.startswith(_WRAPPER_MODULES):
        loss = f"the names of parameters and modules contain {name!r}"
        report_change("torch", f"the wrapper {kind.__qualname__}", loss, AttributeError(name))
    return None


def is_compiled(module: nn.Module) -> bool:
    """Check for `torch.compile(module)` and `module.compile()`."""
    with degrading(
        "torch",
        "torch.nn.Module._compiled_call_impl",
        "watch_activations() accepts a module after module.compile(), and logs nothing",
    ):
        return _COMPILED in dict(module.named_children()) or module._compiled_call_impl is not None
    return False


def amp_tensors(optimizer: torch.optim.Optimizer) -> tuple[Tensor | None, Tensor | None]:
    """Return `found_inf` and `grad_scale`, which `GradScaler` sets during a fused optimizer's step.

    The first is positive if the step will be skipped. The second is not set if the gradients were
    unscaled before the step.
    """
    from torch import Tensor

    if optimizer.defaults.get("fused"):
        _check_grad_scaler()
    found_inf = getattr(optimizer, "found_inf", None)
    scale = getattr(optimizer, "grad_scale", None)
    return (
        found_inf if isinstance(found_inf, Tensor) else None,
        scale if isinstance(scale, Tensor) else None,
    )


@functools.cache
def _check_grad_scaler() -> None:
    with degrading(
        "torch",
        "torch.amp.GradScaler.step",
        "skipped steps of fused optimizers count, and their gradients are logged scaled",
    ):
        import torch

        names = inspect.unwrap(torch.amp.GradScaler.step).__code__.co_names
        if missing := {"found_inf", "grad_scale"} - set(names):
            raise AttributeError(f"it does not set {', '.join(sorted(missing))}")


def subtract(tensors: list[Tensor], subtrahends: list[Tensor]) -> Sequence[Tensor]:
    """Return the differences."""
    import torch

    if _has_foreach():
        return torch._foreach_sub(tensors, subtrahends)
    return [one - other for one, other in zip(tensors, subtrahends, strict=True)]


def multiply(tensors: list[Tensor], factor: float | Tensor) -> Sequence[Tensor]:
    """Return the products with one factor."""
    import torch

    if _has_foreach():
        return torch._foreach_mul(tensors, factor)
    return [tensor * factor for tensor in tensors]


def norms(tensors: list[Tensor], dtype: torch.dtype | None) -> Sequence[Tensor]:
    """Return the 2-norms, computed in this dtype; None is that of the tensors."""
    import torch

    if _has_foreach():
        return torch._foreach_norm(tensors, 2, dtype=dtype)
    return [torch.linalg.vector_norm(tensor, dtype=dtype) for tensor in tensors]


@functools.cache
def _has_foreach() -> bool:
    """Try torch's operations on lists of tensors, which launch one kernel per list."""
    with degrading(
        "torch", "torch._foreach_*", "watch() needs a kernel launch for each tensor and is slower"
    ):
        import torch

        one = [torch.ones(1, device="cpu")]
        torch._foreach_sub(one, one)
        torch._foreach_mul(one, 1.0)
        torch._foreach_norm(one, 2, dtype=torch.float32)
        return True
    return False

"""Listeners that are called before and after each step of every optimizer.

They use torch's global optimizer hooks. Neither models nor optimizers carry any state of ours, so
both can be pickled, and `torch.compile` sees a model without hooks. All listeners share one pair of
hooks, because a listener must be able to unregister while torch iterates over its hooks.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle


class StepListener(Protocol):
    """Called around each step of every optimizer; must not raise."""

    def before_step(self, optimizer: Optimizer, *, has_closure: bool) -> None:
        """Called before the step. With a closure, gradients are computed only during the step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Called after the step."""


_listeners: tuple[StepListener, ...] = ()
_hooks: list[RemovableHandle] = []


def add_listener(listener: StepListener) -> None:
    """Call the listener around each following step."""
    global _listeners
    _listeners = (*_listeners, listener)
    if not _hooks:
        # Looked up here, because the first access imports torch._dynamo, which takes a second.
        disable: Any = torch.compiler.disable
        _hooks.append(register_optimizer_step_pre_hook(disable(_before)))
        _hooks.append(register_optimizer_step_post_hook(disable(_after)))


def remove_listener(listener: StepListener) -> None:
    """Stop calling the listener. Idempotent, and safe to call from a listener."""
    global _listeners
    _listeners = tuple(active for active in _listeners if active is not listener)


def remove_unused_hooks() -> None:
    """Remove the hooks from torch if there are no listeners. Must not be called by a listener."""
    while _hooks and not _listeners:
        _hooks.pop().remove()


def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    for listener in _listeners:
        listener.before_step(optimizer, has_closure=closure is not None)


def _after(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for listener in _listeners:
        listener.after_step(optimizer)

"""Who wants to hear of every optimizer's step, before and after it.

torch has hooks for all optimizers at once. With them neither a model nor an optimizer has anything
of ours: both stay picklable, and torch.compile sees a model without hooks. There is one pair of
them for all listeners, because a listener must be able to leave while torch goes through its hooks.
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


class Listener(Protocol):
    """What is called around each step of each optimizer; it must not raise."""

    def before_step(self, optimizer: Optimizer, *, has_closure: bool) -> None:
        """The step begins; with a closure, the gradients are computed only in it."""

    def after_step(self, optimizer: Optimizer) -> None:
        """The step has been made."""


_listeners: tuple[Listener, ...] = ()
_hooks: list[RemovableHandle] = []


def listen(listener: Listener) -> None:
    """Calls the listener from now on."""
    global _listeners
    _listeners = (*_listeners, listener)
    if not _hooks:
        hide: Any = torch.compiler.disable  # not above: it takes a second to import what it needs
        _hooks.append(register_optimizer_step_pre_hook(hide(_before)))
        _hooks.append(register_optimizer_step_post_hook(hide(_after)))


def leave(listener: Listener) -> None:
    """Calls it no more; may be called by the listener itself, and again."""
    global _listeners
    _listeners = tuple(one for one in _listeners if one is not listener)


def tidy_up() -> None:
    """Leaves torch without our hooks if nobody listens; not to be called by a listener."""
    if not _listeners:
        while _hooks:
            _hooks.pop().remove()


def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    for listener in _listeners:
        listener.before_step(optimizer, has_closure=closure is not None)


def _after(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for listener in _listeners:
        listener.after_step(optimizer)

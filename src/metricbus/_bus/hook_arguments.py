"""The check that the first argument of every hook is a bus."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from metricbus._bus.bus import MetricBus
from metricbus._bus.scope import Scope

P = ParamSpec("P")
R = TypeVar("R")


def requires_bus(call: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that it raises `TypeError` if its first argument is not a bus.

    `call` is an example of a correct call. If the bus is forgotten, Python's own error would name a
    missing last argument instead.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def checked_function(*args: P.args, **kwargs: P.kwargs) -> R:
            if args or "bus" in kwargs:  # otherwise Python's own error is right
                check_bus(call, args[0] if args else kwargs["bus"])
            return function(*args, **kwargs)

        return checked_function

    return decorate


def check_bus(call: str, bus: object) -> None:
    """Raise `TypeError`, showing the correct `call`, if `bus` is neither a bus nor a scope."""
    if not isinstance(bus, MetricBus | Scope):
        raise TypeError(
            "the first argument must be a MetricBus or a scope of one, "
            f"not {type(bus).__name__}; write {call}"
        )

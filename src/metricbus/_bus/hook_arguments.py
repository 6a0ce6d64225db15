"""What all hooks ask of their first argument: that it is the bus."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from metricbus._bus.bus import MetricBus
from metricbus._bus.scope import Scope

P = ParamSpec("P")
R = TypeVar("R")


def bus_first(call: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Has a function raise `TypeError` for a bus that was forgotten or swapped; `call` is how it is
    to be called. Python itself would tell of a missing last argument instead.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def with_bus(*args: P.args, **kwargs: P.kwargs) -> R:
            if args or "bus" in kwargs:  # else Python says what is missing
                check_bus(call, args[0] if args else kwargs["bus"])
            return function(*args, **kwargs)

        return with_bus

    return decorate


def check_bus(call: str, bus: object) -> None:
    """`TypeError` that says how to write the call, if `bus` is neither a bus nor a scope."""
    if not isinstance(bus, MetricBus | Scope):
        raise TypeError(
            "the first argument is the bus, a MetricBus or a scope of one, "
            f"not {type(bus).__name__}; write {call}"
        )

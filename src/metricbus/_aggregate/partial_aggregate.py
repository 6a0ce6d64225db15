"""A partial aggregate: what a reduction has accumulated before its result is emitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metricbus._aggregate.reductions import Custom, Reducer, reduction_factory
from metricbus._common.records import Number


class LogTime(NamedTuple):
    """When a value was logged: step, epoch, and nanoseconds since 1970-01-01 UTC."""

    step: int
    epoch: int
    time: int


class Partial:
    """A reduction in progress, its number of values, and when the last one was logged.

    `values` keeps the values of a user-defined function, which may fail: they are then emitted
    unreduced.
    """

    def __init__(self, reduce: Reducer) -> None:
        self.reduction = reduction_factory(reduce)()
        self.count = 0
        self.last = LogTime(0, 0, 0)
        is_custom = isinstance(self.reduction, Custom)
        self.values: list[tuple[Number, LogTime]] | None = [] if is_custom else None

    def add(self, value: Number, weight: float, time: LogTime, *, keep: bool) -> None:
        """Add a value, and `keep` the value itself where that may be needed."""
        self.reduction.add(value, weight)
        self.count += 1
        self.last = time
        if keep and self.values is not None:
            self.values.append((value, time))

    def merge(self, later: Partial) -> None:
        """Add what another partial aggregate has accumulated later."""
        self.reduction.merge(later.reduction)
        self.count += later.count
        self.last = later.last

    def state(self) -> dict[str, Any]:
        """Return the state as lists, strings and numbers. The keys are part of checkpoints."""
        values = self.values
        return {
            "count": self.count,
            "place": list(self.last),
            "kept": None if values is None else [[value, *time] for value, time in values],
            "by": type(self.reduction).__name__,
            "reduction": self.reduction.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace the state; raise `ValueError` if it is that of another reduction."""
        kind = type(self.reduction).__name__
        if state["by"] != kind:
            raise ValueError(f"it was saved by {state['by']}, and the definition now uses {kind}")
        self.reduction.restore(state["reduction"])
        self.count = state["count"]
        self.last = LogTime(*state["place"])
        if self.values is not None:
            self.values = [(value, LogTime(*time)) for value, *time in state["kept"] or []]

"""The base class of all reductions, and the format of their saved state."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from metricbus._common.exact_sum import ExactSum
from metricbus._common.records import Number


class Reduction(ABC):
    """A running reduction of one name, which receives values in the order of the calls.

    Class names and instance attributes are part of the checkpoint format: renaming one makes
    checkpoints of earlier versions unreadable.
    """

    can_merge: ClassVar[bool] = False  # merged parts give the same result as the whole
    is_identity_for_one: ClassVar[bool] = False  # a single value reduces to itself
    needs_multiple: ClassVar[bool] = False  # the result for a single value ignores the value
    is_cumulative: ClassVar[bool] = False  # the reduction continues after it has been emitted
    parameters: ClassVar[frozenset[str]] = frozenset()  # constructor arguments, not saved

    @abstractmethod
    def add(self, value: Number, weight: float = 1.0) -> None:
        """Add a value. Only `mean` and `std` use the weight."""

    @abstractmethod
    def result(self) -> Number:
        """Return the reduction of the values so far; there is at least one."""

    def merge(self, other: Reduction) -> None:
        """Add all values of another reduction of the same class.

        Raises `TypeError` unless `can_merge`.
        """
        raise TypeError(f"{type(self).__name__} cannot be merged from parts")

    def state(self) -> dict[str, Any]:
        """Return the state as lists, strings and numbers, for any checkpoint format."""
        return {k: _to_plain(v) for k, v in vars(self).items() if k not in self.parameters}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace the state by one that `state()` of the same class returned."""
        for name in vars(self).keys() - self.parameters:
            setattr(self, name, _from_plain(state[name], like=getattr(self, name)))


def _to_plain(value: Any) -> Any:
    if isinstance(value, ExactSum):
        return value.state()
    if isinstance(value, random.Random):
        version, numbers, gauss_next = value.getstate()
        return [version, list(numbers), gauss_next]
    return list(value) if isinstance(value, list) else value


def _from_plain(saved: Any, *, like: Any) -> Any:
    """Reverse `_to_plain`, for an attribute whose current value is `like`."""
    if isinstance(like, ExactSum):
        return ExactSum.restored(saved)
    if isinstance(like, random.Random):
        version, numbers, gauss_next = saved
        generator = random.Random()
        generator.setstate((version, tuple(numbers), gauss_next))
        return generator
    return list(saved) if isinstance(like, list) else saved

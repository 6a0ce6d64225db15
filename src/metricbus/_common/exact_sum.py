"""A sum of floats that does not depend on the order or the grouping of its terms."""

from __future__ import annotations

import math
from collections.abc import Sequence


class ExactSum:
    """A running sum that is rounded once, when its value is requested.

    The sum is kept as a list of non-overlapping floats: J. R. Shewchuk, "Adaptive Precision
    Floating-Point Arithmetic and Fast Robust Geometric Predicates", Discrete & Computational
    Geometry 18 (1997), 305-363, the method behind `math.fsum`. Infinities and NaN are summed
    separately. A sum that once exceeds the range of float64 stays infinite.
    """

    __slots__ = ("_parts", "_special")

    def __init__(self) -> None:
        self._parts: list[float] = []
        self._special = 0.0

    def add(self, term: float) -> None:
        """Add a term."""
        if not math.isfinite(term):
            self._special += term
            return
        kept = 0
        for part in self._parts:
            large, small = (term, part) if abs(term) >= abs(part) else (part, term)
            total = large + small
            if math.isinf(total):
                self._special += total
                return
            error = small - (total - large)
            if error:
                self._parts[kept] = error
                kept += 1
            term = total
        self._parts[kept:] = [term]

    def add_integer(self, term: int) -> None:
        """Add an integer of any size exactly."""
        while term:
            try:
                head = float(term)
            except OverflowError:
                head = math.inf if term > 0 else -math.inf
            self.add(head)
            if math.isinf(head):
                return
            term -= int(head)

    def merge(self, other: ExactSum) -> None:
        """Add another sum."""
        self._special += other._special
        for part in tuple(other._parts):
            self.add(part)

    def state(self) -> list[float]:
        """Return the state for `restored`: the sum of the infinities and NaN, then the parts."""
        return [self._special, *self._parts]

    @classmethod
    def restored(cls, state: Sequence[float]) -> ExactSum:
        """Return a sum with the given `state()`."""
        total = cls()
        total._special, *total._parts = state
        return total

    def value(self) -> float:
        """Return the sum, rounded to the nearest float."""
        return self._special or math.fsum(self._parts)

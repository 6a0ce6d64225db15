"""A sum of floats that does not depend on the order or the split of its terms."""

from __future__ import annotations

import math
from collections.abc import Sequence


class ExactSum:
    """A running sum that is rounded once, when it is asked for.

    Keeps the sum as a few floats that do not overlap: J. R. Shewchuk, "Adaptive Precision
    Floating-Point Arithmetic and Fast Robust Geometric Predicates", Discrete & Computational
    Geometry 18 (1997), 305-363, the method behind `math.fsum`. Infinities, NaN, and sums that leave
    float64's range (then infinite for good) are kept apart.
    """

    __slots__ = ("_parts", "_special")

    def __init__(self) -> None:
        self._parts: list[float] = []
        self._special = 0.0

    def add(self, term: float) -> None:
        """Adds a term."""
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
            rest = small - (total - large)
            if rest:
                self._parts[kept] = rest
                kept += 1
            term = total
        self._parts[kept:] = [term]

    def add_integer(self, term: int) -> None:
        """Adds an integer of any size, exactly."""
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
        """Adds another sum."""
        self._special += other._special
        for part in tuple(other._parts):
            self.add(part)

    def state(self) -> list[float]:
        """The special part and the others, for `restored`."""
        return [self._special, *self._parts]

    @classmethod
    def restored(cls, state: Sequence[float]) -> ExactSum:
        """The sum that gave this `state`."""
        total = cls()
        total._special, *total._parts = state
        return total

    def value(self) -> float:
        """The sum, rounded to the nearest float."""
        if self._special:  # an infinity, or NaN
            return self._special
        return math.fsum(self._parts)

"""The course of a series in a fixed number of buckets, however long the series grows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BUCKETS = 128  # even, so that neighbours can be joined

Floats = NDArray[np.float64]


class Curve:
    """The least and the greatest value of each bucket of neighbours, in the order they came.

    A bucket holds `width` values. Where they would need more than `BUCKETS`, neighbouring buckets
    are joined and the width doubles, so a peak that came once stays a peak. Values that are not
    finite leave a gap.
    """

    def __init__(self) -> None:
        self.width = 1
        self._count = 0
        self._low = _gaps(BUCKETS)
        self._high = _gaps(BUCKETS)

    def add(self, values: Floats) -> None:
        """Goes on with these values."""
        if not len(values):
            return
        finite = np.where(np.isfinite(values), values, np.nan)
        end = self._count + len(finite)
        while end > BUCKETS * self.width:
            self._join_neighbours()
        places = np.arange(self._count, end) // self.width
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        into = places[starts]
        self._low[into] = np.fmin(self._low[into], np.fmin.reduceat(finite, starts))
        self._high[into] = np.fmax(self._high[into], np.fmax.reduceat(finite, starts))
        self._count = end

    def _join_neighbours(self) -> None:
        half = _gaps(BUCKETS // 2)
        self._low = np.concatenate((np.fmin(self._low[0::2], self._low[1::2]), half))
        self._high = np.concatenate((np.fmax(self._high[0::2], self._high[1::2]), half))
        self.width *= 2

    @property
    def low(self) -> Floats:
        """The least value of each bucket that was begun; NaN for a gap."""
        return self._low[: self._begun]

    @property
    def high(self) -> Floats:
        """The greatest value of each bucket that was begun; NaN for a gap."""
        return self._high[: self._begun]

    @property
    def _begun(self) -> int:
        return -(-self._count // self.width)


def _gaps(count: int) -> Floats:
    return np.full(count, np.nan)

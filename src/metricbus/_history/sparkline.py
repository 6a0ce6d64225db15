"""Reduces a series of any length to a fixed number of buckets, from which a sparkline is drawn."""

from __future__ import annotations

import numpy as np

from metricbus._history.columns import Floats

BUCKETS = 128  # even: merged in pairs


class SparklineData:
    """The minimum and the maximum of each bucket of consecutive values.

    A bucket holds `width` values. When the series outgrows `BUCKETS` buckets, adjacent buckets are
    merged and `width` doubles, so every extreme value is kept. Values that are not finite are
    ignored; a bucket without finite values is NaN.
    """

    def __init__(self) -> None:
        self.width = 1
        self._count = 0
        self._low = np.full(BUCKETS, np.nan)
        self._high = np.full(BUCKETS, np.nan)

    def add(self, values: Floats) -> None:
        """Append values to the series."""
        if not len(values):
            return
        finite = np.where(np.isfinite(values), values, np.nan)
        end = self._count + len(finite)
        while end > BUCKETS * self.width:
            self._merge_adjacent_buckets()
        bucket = np.arange(self._count, end) // self.width
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        touched = bucket[starts]
        self._low[touched] = np.fmin(self._low[touched], np.fmin.reduceat(finite, starts))
        self._high[touched] = np.fmax(self._high[touched], np.fmax.reduceat(finite, starts))
        self._count = end

    def _merge_adjacent_buckets(self) -> None:
        unused = np.full(BUCKETS // 2, np.nan)
        self._low = np.concatenate((np.fmin(self._low[0::2], self._low[1::2]), unused))
        self._high = np.concatenate((np.fmax(self._high[0::2], self._high[1::2]), unused))
        self.width *= 2

    @property
    def low(self) -> Floats:
        """The minimum of each bucket in use; NaN for a bucket without finite values."""
        return self._low[: self._n_used]

    @property
    def high(self) -> Floats:
        """The maximum of each bucket in use; NaN for a bucket without finite values."""
        return self._high[: self._n_used]

    @property
    def _n_used(self) -> int:
        return -(-self._count // self.width)

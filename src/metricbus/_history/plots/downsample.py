"""Reduces the points of a line without changing how it looks: no peak is lost, at any width.

The x axis is divided into buckets, one per column of pixels for example. Of the points in a bucket,
the first, the last, the minimum and the maximum are kept. This is the M4 aggregation of U. Jugel et
al. (VLDB 2014), extended by NaN, which remains a gap in the line.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from metricbus._history.columns import Floats, Ints

Indices: TypeAlias = NDArray[np.intp]


def downsample(x: Floats, y: Floats, buckets: int) -> Indices:
    """Return the ascending indices of the points to draw.

    `x` must be finite and ascending; `buckets` is the number of equal parts of its range. A NaN
    between two kept points is kept too, so there are at most ten points per bucket. A series with
    at most four points per bucket is kept as a whole.
    """
    if len(x) <= 4 * buckets:
        return np.arange(len(x))
    valid = np.flatnonzero(~np.isnan(y))
    if not len(valid):
        return np.arange(len(x))[:1]
    bucket = _bucket_numbers(x[valid], buckets)
    starts = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    ends = np.append(starts[1:], len(valid)) - 1
    group = np.repeat(np.arange(len(starts)), ends - starts + 1)
    value = y[valid]
    lowest = _first_equal(value, np.minimum.reduceat(value, starts)[group], group)
    highest = _first_equal(value, np.maximum.reduceat(value, starts)[group], group)
    kept = valid[np.unique(np.concatenate([starts, lowest, highest, ends]))]
    return _with_gaps(kept, np.flatnonzero(np.isnan(y)))


def _bucket_numbers(x: Floats, buckets: int) -> Ints:
    span = x[-1] - x[0]
    if not span > 0:
        return np.zeros(len(x), dtype=np.int64)
    bucket: Ints = np.minimum((x - x[0]) / span * buckets, buckets - 1).astype(np.int64)
    return bucket


def _first_equal(values: Floats, targets: Floats, group: Indices) -> Indices:
    """Return the index of the first value of each group that equals its target."""
    equal = np.flatnonzero(values == targets)
    _, first = np.unique(group[equal], return_index=True)
    indices: Indices = equal[first]
    return indices


def _with_gaps(kept: Indices, gaps: Indices) -> Indices:
    """Return the kept points, the first gap of all, and the next gap after each point."""
    following = np.searchsorted(gaps, kept)
    following = following[following < len(gaps)]
    return np.unique(np.concatenate([kept, gaps[:1], gaps[following]]))

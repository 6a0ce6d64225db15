"""Fewer points that give the same picture: no peak is lost, at any width.

Of all points that fall into one bucket (one column of pixels, say) a line shows the first, the
last, the least and the greatest alone; so those four are kept. This is the M4 aggregation of
U. Jugel and others (VLDB 2014), with NaN added, which stays as a gap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


def thinned(x: Floats, y: Floats, buckets: int) -> Indices:
    """Which points to draw, in their order: those that matter in `buckets` equal parts of x.

    `x` ascends and is finite. Between two points that are kept, a NaN is kept where there was one;
    so there are never more than ten points a bucket. A series that is short enough is kept whole.
    """
    if len(x) <= 4 * buckets:
        return np.arange(len(x))
    there = np.flatnonzero(~np.isnan(y))
    if not len(there):
        return np.arange(len(x))[:1]
    bucket = _bucket_of(x[there], buckets)
    starts = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    ends = np.append(starts[1:], len(there)) - 1
    number = np.repeat(np.arange(len(starts)), ends - starts + 1)
    value = y[there]
    lowest = _first_equal(value, np.minimum.reduceat(value, starts)[number], number)
    highest = _first_equal(value, np.maximum.reduceat(value, starts)[number], number)
    kept = there[np.unique(np.concatenate([starts, lowest, highest, ends]))]
    return _with_gaps(kept, np.flatnonzero(np.isnan(y)))


def _bucket_of(x: Floats, buckets: int) -> NDArray[np.int64]:
    span = x[-1] - x[0]
    if not span > 0:
        return np.zeros(len(x), dtype=np.int64)
    bucket: NDArray[np.int64] = np.minimum((x - x[0]) / span * buckets, buckets - 1).astype(
        np.int64
    )
    return bucket


def _first_equal(values: Floats, wanted: Floats, number: Indices) -> Indices:
    """In each numbered part, where the wanted value first is."""
    where = np.flatnonzero(values == wanted)
    _, first = np.unique(number[where], return_index=True)
    firsts: Indices = where[first]
    return firsts


def _with_gaps(kept: Indices, gaps: Indices) -> Indices:
    """The points, and after each of them the next gap; also one that is before all."""
    following = np.searchsorted(gaps, kept)
    following = following[following < len(gaps)]
    return np.unique(np.concatenate([kept, gaps[:1], gaps[following]]))

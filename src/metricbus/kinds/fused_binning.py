"""Histograms of many arrays at once, for about what a few passes over memory cost.

The arrays are laid into rows of equal width, each array beginning a row of its own, so that what is
known of an array is one number a row and every operation is one over all rows. What is left of an
array's last row repeats its first element: that moves no extreme, and is taken out of the counts
and sums again.

All sums are those of float64. A value is counted by where it stands between the extremes, so that
one within rounding of an edge may be on its other side than by `binning.bin_values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricbus.kinds.arrays import Array
from metricbus.kinds.binning import Binned, bin_values

_WIDTH = 256  # a network has many small tensors: wider rows would be padding for the most part
_GROUP = 1 << 18  # values that are counted together: as many as a core's cache holds
_LARGE = 1 << 20  # an array beyond that is counted in blocks, by itself, and has no rows

Numbers = NDArray[np.float64]


class Summary(NamedTuple):
    """What is known of arrays before their values are counted; each field has a number an array."""

    size: NDArray[np.int64]
    minimum: Numbers
    maximum: Numbers
    mean: Numbers
    std: Numbers
    sum: Numbers
    sum_squares: Numbers


class _Rows(NamedTuple):
    """Some arrays in rows: `owners` says whose each row is, `starts` where each array begins.

    `scratch` is as large as `values`, for what is made of them: fresh memory for each operation
    would cost more than the operation.
    """

    values: Numbers
    scratch: Numbers
    owners: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.int64]
    padding: NDArray[np.int64]
    first: Numbers


def bin_each(arrays: Sequence[Array], bins: int) -> list[Binned]:
    """The histogram of each array, as by `bin_values`."""
    fits = [0 < array.size <= _LARGE for array in arrays]
    groups = list(_groups(compress(arrays, fits)))
    height = max((_heights(group).sum() for group in groups), default=0)
    memory = np.empty((2, height, _WIDTH))
    with np.errstate(all="ignore"):
        fused = iter([one for group in groups for one in _bin_group(group, bins, memory)])
    return [
        next(fused) if is_fused else bin_values(array, bins)
        for array, is_fused in zip(arrays, fits, strict=True)
    ]


def _groups(arrays: Iterable[Array]) -> Iterator[list[Array]]:
    """The arrays in their order, as many at a time as are counted together."""
    group: list[Array] = []
    filled = 0
    for array in arrays:
        if group and filled + array.size > _GROUP:
            yield group
            group, filled = [], 0
        group.append(array)
        filled += array.size
    if group:
        yield group


def _bin_group(arrays: list[Array], bins: int, memory: Numbers) -> list[Binned]:
    rows = _in_rows(arrays, memory)
    summary = _summary(rows)
    edges = edges_of(summary.minimum, summary.maximum, bins)
    is_plain = np.isfinite(summary.sum_squares) & (np.diff(edges) > 0).all(axis=1)
    if is_plain.all():
        return summed_up(_counts(rows, edges), edges, summary)
    plain = list(compress(arrays, is_plain))
    fused = iter(_bin_group(plain, bins, memory) if plain else ())
    return [  # the others have values, or a range, of which a row's arithmetic would not be right
        next(fused) if fits else bin_values(array, bins)
        for array, fits in zip(arrays, is_plain, strict=True)
    ]


def summed_up(counts: NDArray[np.int64], edges: Numbers, summary: Summary) -> list[Binned]:
    """One histogram for each row of `counts` and of `edges`, and for each number of `summary`."""
    columns = [column.tolist() for column in (counts, edges, *summary)]
    return [Binned(*fields) for fields in zip(*columns, strict=True)]


def edges_of(minimum: Numbers, maximum: Numbers, bins: int) -> Numbers:
    """The edges of `bins` bins of equal width, in rows; around a constant, there is some room."""
    room = np.where(minimum < maximum, 0.0, np.maximum(0.5, np.abs(minimum) * 1e-3))
    most = np.finfo(np.float64).max
    low, high = np.maximum(minimum - room, -most), np.minimum(maximum + room, most)
    scale = np.where(np.isfinite(high - low), 1.0, 0.25)  # from one end of float64 to the other
    return np.linspace(low * scale, high * scale, bins + 1, axis=1) / scale[:, np.newaxis]


def _heights(arrays: list[Array]) -> NDArray[np.int64]:
    return np.array([-(-array.size // _WIDTH) for array in arrays])


def _in_rows(arrays: list[Array], memory: Numbers) -> _Rows:
    sizes, heights = np.array([array.size for array in arrays]), _heights(arrays)
    ends = np.cumsum(heights)
    values, scratch = memory[:, : ends[-1]]
    flat = values.reshape(-1)
    begins = (ends - heights) * _WIDTH
    for array, begin, end in zip(arrays, begins.tolist(), (ends * _WIDTH).tolist(), strict=True):
        flat[begin : begin + array.size] = array.reshape(-1)
        flat[begin + array.size : end] = flat[begin]
    return _Rows(
        values,
        scratch,
        owners=np.repeat(np.arange(len(arrays)), heights),
        starts=ends - heights,
        sizes=sizes,
        padding=heights * _WIDTH - sizes,
        first=flat[begins],
    )


def _summary(rows: _Rows) -> Summary:
    values, starts, first, padding = rows.values, rows.starts, rows.first, rows.padding
    minimum = np.minimum.reduceat(values.min(axis=1), starts)
    maximum = np.maximum.reduceat(values.max(axis=1), starts)
    total = np.add.reduceat(values.sum(axis=1), starts) - padding * first
    mean = np.clip(total / rows.sizes, minimum, maximum)
    away = np.subtract(values, mean[rows.owners, np.newaxis], out=rows.scratch)
    deviations = _sums_of_squares(away, starts) - padding * (first - mean) ** 2
    return Summary(
        size=rows.sizes,
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        std=np.sqrt(np.maximum(deviations, 0.0) / rows.sizes),
        sum=total,
        sum_squares=np.maximum(_sums_of_squares(values, starts) - padding * first**2, 0.0),
    )


def _sums_of_squares(values: Numbers, starts: NDArray[np.intp]) -> Numbers:
    by_row = np.einsum("ij,ij->i", values, values)
    found: Numbers = np.add.reduceat(by_row, starts)
    return found


def _counts(rows: _Rows, edges: Numbers) -> NDArray[np.int64]:
    """How many values of each array are in each of its bins; overwrites the values."""
    arrays, bins = edges.shape[0], edges.shape[1] - 1
    low, owners = edges[:, 0], rows.owners
    place = np.subtract(rows.values, low[owners, np.newaxis], out=rows.scratch)
    place /= (edges[:, -1] - low)[owners, np.newaxis]
    place *= bins
    bin_of = rows.values.view(np.int64)
    np.copyto(bin_of, place, casting="unsafe")
    bin_of += (owners * (bins + 1))[:, np.newaxis]  # the largest value has a bin of its own
    found = np.bincount(bin_of.reshape(-1), minlength=arrays * (bins + 1))
    found[bin_of[rows.starts, 0]] -= rows.padding
    counts = found.reshape(arrays, bins + 1)
    counts[:, -2] += counts[:, -1]
    return counts[:, :-1]

"""Histograms of many arrays at once, for about what a few passes over memory cost.

The arrays lie one behind the other. They are laid into rows of equal width, each array beginning a
row of its own, so that what is known of an array is one number a row and every operation is one
over all rows. What is left of an array's last row repeats its first element: that moves no extreme,
and is taken out of the counts and sums again.

All sums are those of float64. A value is counted by where it stands between the extremes, so that
one within rounding of an edge may be on its other side than by `binning.bin_values`; one on an edge
goes above it, as there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricbus.media.arrays import Array
from metricbus.media.histogram_bins import Binned, bin_values

_WIDTH = 128  # many tensors are a multiple of it, and need no padding; many others are small
_GROUP = 1 << 20  # values, or bins, at a time: the fewer calls, the less a training loop waits
_LARGE = 1 << 21  # an array beyond that is counted in blocks, by itself, and has no rows
_UP = 1 + 2.0**-50  # more than what rounding can have taken from a place among the bins

Numbers = NDArray[np.float64]

_kept = threading.local()


class _Rows(NamedTuple):
    """Some arrays in rows: `owners` says whose each row is, `starts` where each array begins.

    `scratch` is as large as `values`, for what is made of them.
    """

    values: Numbers
    scratch: Numbers
    owners: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.int64]
    padding: NDArray[np.int64]
    first: Numbers


class _Summary(NamedTuple):
    """What is known of arrays beside their counts; each field has a number an array."""

    size: NDArray[np.int64]
    minimum: Numbers
    maximum: Numbers
    mean: Numbers
    std: Numbers
    sum: Numbers
    sum_squares: Numbers


def bin_each(flat: Array, sizes: Sequence[int], bins: int) -> list[Binned]:
    """The histograms, as by `bin_values`, of arrays of these sizes that lie behind each other.

    `flat` has one dimension, and the sum of the sizes as its length.
    """
    cuts = list(accumulate(sizes, initial=0))
    arrays = [flat[begin:end] for begin, end in pairwise(cuts)]
    found: list[Binned] = []
    for first, last in _groups(sizes, bins):
        group = arrays[first:last]
        if not 0 < group[0].size <= _LARGE:
            found.append(bin_values(group[0], bins))
            continue
        height = sum(-(-array.size // _WIDTH) for array in group)
        found += _bin_group(flat[cuts[first] : cuts[last]], group, bins, _memory(height))
    return found


def _memory(rows: int) -> Numbers:
    """Two tables of so many rows at least; what a group needs is kept for the thread's next one."""
    kept: Numbers | None = getattr(_kept, "memory", None)
    if kept is None or kept.shape[1] < rows:
        kept = np.empty((2, rows, _WIDTH))
        if rows * _WIDTH <= 2 * _GROUP:
            _kept.memory = kept
    return kept


def _groups(sizes: Sequence[int], bins: int) -> Iterator[tuple[int, int]]:
    """The first and the last but one of arrays that are counted together, or of one by itself."""
    first = filled = 0
    for place, size in enumerate(sizes):
        is_alone = not 0 < size <= _LARGE
        if first < place and (is_alone or filled + max(size, bins) > _GROUP):
            yield first, place
            first, filled = place, 0
        filled += max(size, bins)
        if is_alone:
            yield place, place + 1
            first, filled = place + 1, 0
    if first < len(sizes):
        yield first, len(sizes)


def _bin_group(flat: Array, arrays: list[Array], bins: int, memory: Numbers) -> list[Binned]:
    with np.errstate(all="ignore"):
        rows = _in_rows(flat, np.array([array.size for array in arrays]), memory)
        summary = _summary(flat, rows)
        edges = edges_of(summary.minimum, summary.maximum, bins)
        scale = _UP * bins / (edges[:, -1] - edges[:, 0])
        is_plain = np.isfinite(summary.sum_squares) & np.isfinite(scale)
        is_plain &= (np.diff(edges) > 0).all(axis=1)
        if is_plain.all():
            columns = _counts(rows, edges[:, 0], scale, bins), edges, *summary
            return [Binned(*one) for one in zip(*(c.tolist() for c in columns), strict=True)]
    plain = list(compress(arrays, is_plain))
    fused = iter(_bin_group(np.concatenate(plain), plain, bins, memory) if plain else ())
    return [  # the others have values, or a range, of which a row's arithmetic would not be right
        next(fused) if fits else bin_values(array, bins)
        for array, fits in zip(arrays, is_plain, strict=True)
    ]


def edges_of(minimum: Numbers, maximum: Numbers, bins: int) -> Numbers:
    """The edges of `bins` bins of equal width, in rows; around a constant, there is some room."""
    room = np.where(minimum < maximum, 0.0, np.maximum(0.5, np.abs(minimum) * 1e-3))
    most = np.finfo(np.float64).max
    low, high = np.maximum(minimum - room, -most), np.minimum(maximum + room, most)
    scale = np.where(np.isfinite(high - low), 1.0, 0.25)  # from one end of float64 to the other
    return np.linspace(low * scale, high * scale, bins + 1, axis=1) / scale[:, np.newaxis]


def _in_rows(flat: Array, sizes: NDArray[np.int64], memory: Numbers) -> _Rows:
    """What lies in `flat`, in rows; arrays without padding between them are copied at once, since
    each copy lets go of the interpreter, which is then not soon to be had again.
    """
    heights = -(-sizes // _WIDTH)
    ends = np.cumsum(heights)
    values, scratch = memory[:, : ends[-1]]
    cells = values.reshape(-1)
    begins = (ends - heights) * _WIDTH
    copied = at = source = 0  # of `flat`; the cells filled; where the next array is in `flat`
    for size, begin, end in zip(
        sizes.tolist(), begins.tolist(), (ends * _WIDTH).tolist(), strict=True
    ):
        source += size
        if begin + size < end or source == flat.size:
            cells[at : begin + size] = flat[copied:source]
            cells[begin + size : end] = cells[begin]
            copied, at = source, end
    return _Rows(
        values,
        scratch,
        owners=np.repeat(np.arange(sizes.size), heights),
        starts=ends - heights,
        sizes=sizes,
        padding=heights * _WIDTH - sizes,
        first=cells[begins],
    )


def _summary(flat: Array, rows: _Rows) -> _Summary:
    """`flat` has the arrays as they were given, behind each other."""
    values, starts, first, padding = rows.values, rows.starts, rows.first, rows.padding
    begins = np.cumsum(rows.sizes) - rows.sizes
    minimum = np.minimum.reduceat(flat, begins).astype(np.float64)
    maximum = np.maximum.reduceat(flat, begins).astype(np.float64)
    total = np.add.reduceat(values.sum(axis=1), starts) - padding * first
    mean = np.clip(total / rows.sizes, minimum, maximum)
    away = np.subtract(values, mean[rows.owners, np.newaxis], out=rows.scratch)
    deviations = np.add.reduceat(np.einsum("ij,ij->i", away, away), starts)
    deviations = np.maximum(deviations - padding * (first - mean) ** 2, 0.0)
    return _Summary(
        size=rows.sizes,
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        std=np.sqrt(deviations / rows.sizes),
        sum=total,
        sum_squares=deviations + rows.sizes * mean**2,
    )


def _counts(rows: _Rows, low: Numbers, scale: Numbers, bins: int) -> NDArray[np.int64]:
    """How many values of each array are in each of its bins; overwrites the values."""
    owners = rows.owners
    place = np.subtract(rows.values, low[owners, np.newaxis], out=rows.scratch)
    place *= scale[owners, np.newaxis]
    bin_of = rows.values.reshape(-1).view(np.int32)[: place.size].reshape(place.shape)
    np.copyto(bin_of, place, casting="unsafe")  # to 32 bits, for which there are vectors
    bin_of += (owners * (bins + 1)).astype(np.int32)[:, np.newaxis]
    found = _bincount(bin_of.reshape(-1), low.size * (bins + 1))
    found[bin_of[rows.starts, 0]] -= rows.padding
    counts = found.reshape(low.size, bins + 1)
    counts[:, -2] += counts[:, -1]  # the largest value was counted in a bin of its own
    return counts[:, :-1]


def _bincount(numbers: NDArray[np.int32], length: int) -> NDArray[np.int64]:
    """How often each number comes; by torch where it is, which lets others run meanwhile."""
    torch = sys.modules.get("torch")
    if torch is None:
        return np.bincount(numbers, minlength=length)
    found: NDArray[np.int64] = torch.bincount(torch.from_numpy(numbers), minlength=length).numpy()
    return found

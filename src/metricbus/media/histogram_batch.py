"""Histograms of many arrays at once, at the cost of a few passes over memory.

The arrays are adjacent in one flat array. They are laid out in rows of equal width, and each array
starts a new row, so that per-array numbers become one number per row, and each operation covers all
rows. The rest of an array's last row is padded with the array's first element: this does not change
the extremes, and is subtracted from counts and sums again.

All sums are computed in float64. A value's bin is computed from its position between the extremes,
so a value within rounding error of an edge may be in the other bin than with
`histogram_bins.bin_values`. A value exactly on an edge belongs to the bin above it in both.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricbus.media.arrays import Array
from metricbus.media.histogram_bins import HistogramData, bin_values

# The sizes of many tensors are multiples of this, and need no padding.
_WIDTH = 128
# The largest number of values, or bins, in one group. Fewer and larger numpy calls acquire the GIL
# less often, which shortens the training loop's waits for it.
_GROUP = 1 << 20
# Larger arrays are binned one by one, in blocks.
_LARGE = 1 << 21
# Compensates for rounding in a value's position among the bins.
_ROUND_UP = 1 + 2.0**-50

Numbers = NDArray[np.float64]

_cache = threading.local()


class _PaddedRows(NamedTuple):
    """Arrays laid out in rows.

    `values` and `scratch`, a buffer for intermediate results, have shape (rows, _WIDTH). `owners`
    has the index of each row's array. The other fields have one element per array: `starts` its
    first row, `sizes` its number of values, `padding` that of padding elements, `first` its first
    element.
    """

    values: Numbers
    scratch: Numbers
    owners: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.int64]
    padding: NDArray[np.int64]
    first: Numbers


def bin_arrays(flat: Array, sizes: Sequence[int], bins: int) -> list[HistogramData]:
    """Return the histograms of adjacent arrays of the given sizes, as `bin_values` would.

    `flat` is one-dimensional; its length is the sum of `sizes`.
    """
    bounds = list(accumulate(sizes, initial=0))
    arrays = [flat[begin:end] for begin, end in pairwise(bounds)]
    histograms: list[HistogramData] = []
    for first, end in _groups(sizes, bins):
        group = arrays[first:end]
        if not 0 < group[0].size <= _LARGE:
            histograms.append(bin_values(group[0], bins))
            continue
        height = sum(-(-array.size // _WIDTH) for array in group)
        histograms += _bin_group(flat[bounds[first] : bounds[end]], group, bins, _buffers(height))
    return histograms


def _buffers(rows: int) -> Numbers:
    """Return two buffers of at least this many rows; each thread reuses its own."""
    buffers: Numbers | None = getattr(_cache, "buffers", None)
    if buffers is None or buffers.shape[1] < rows:
        buffers = np.empty((2, rows, _WIDTH))
        if rows * _WIDTH <= 2 * _GROUP:
            _cache.buffers = buffers
    return buffers


def _groups(sizes: Sequence[int], bins: int) -> Iterator[tuple[int, int]]:
    """Yield index ranges (first, end) of arrays to bin together; empty and large ones are alone."""
    first = filled = 0
    for index, size in enumerate(sizes):
        is_alone = not 0 < size <= _LARGE
        if first < index and (is_alone or filled + max(size, bins) > _GROUP):
            yield first, index
            first, filled = index, 0
        filled += max(size, bins)
        if is_alone:
            yield index, index + 1
            first, filled = index + 1, 0
    if first < len(sizes):
        yield first, len(sizes)


def _bin_group(
    flat: Array, arrays: list[Array], bins: int, buffers: Numbers
) -> list[HistogramData]:
    with np.errstate(all="ignore"):
        rows = _pad_to_rows(flat, np.array([array.size for array in arrays]), buffers)
        stats = _stats(flat, rows)
        _, minimum, maximum, *_, sum_squares = stats
        edges = edges_of(minimum, maximum, bins)
        scale = _ROUND_UP * bins / (edges[:, -1] - edges[:, 0])
        fits = np.isfinite(sum_squares) & np.isfinite(scale)
        fits &= (np.diff(edges) > 0).all(axis=1)
        if fits.all():
            columns = _counts(rows, edges[:, 0], scale, bins), edges, *stats
            return [HistogramData(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    # Non-finite values, and ranges too wide or too narrow for float64, need the slower path.
    fitting = list(compress(arrays, fits))
    fused = iter(_bin_group(np.concatenate(fitting), fitting, bins, buffers) if fitting else ())
    return [
        next(fused) if can_fuse else bin_values(array, bins)
        for array, can_fuse in zip(arrays, fits, strict=True)
    ]


def edges_of(minimum: Numbers, maximum: Numbers, bins: int) -> Numbers:
    """Return the edges of `bins` equally wide bins between each pair of extremes.

    The extremes have shape (n,), the result (n, bins + 1). Equal extremes are moved apart.
    """
    margin = np.where(minimum < maximum, 0.0, np.maximum(0.5, np.abs(minimum) * 1e-3))
    largest = np.finfo(np.float64).max
    low, high = np.maximum(minimum - margin, -largest), np.minimum(maximum + margin, largest)
    scale = np.where(np.isfinite(high - low), 1.0, 0.25)  # the range may exceed float64
    return np.linspace(low * scale, high * scale, bins + 1, axis=1) / scale[:, np.newaxis]


def _pad_to_rows(flat: Array, sizes: NDArray[np.int64], buffers: Numbers) -> _PaddedRows:
    """Lay out the arrays in rows.

    Adjacent arrays without padding between them are copied at once: each copy releases the GIL, and
    waiting for it again takes a while.
    """
    heights = -(-sizes // _WIDTH)
    ends = np.cumsum(heights)
    values, scratch = buffers[:, : ends[-1]]
    cells = values.reshape(-1)
    begins = (ends - heights) * _WIDTH
    copied = filled = source = 0  # ends: of what is copied from `flat`, of `cells`, of the array
    for size, begin, end in zip(
        sizes.tolist(), begins.tolist(), (ends * _WIDTH).tolist(), strict=True
    ):
        source += size
        if begin + size < end or source == flat.size:
            cells[filled : begin + size] = flat[copied:source]
            cells[begin + size : end] = cells[begin]
            copied, filled = source, end
    return _PaddedRows(
        values,
        scratch,
        owners=np.repeat(np.arange(sizes.size), heights),
        starts=ends - heights,
        sizes=sizes,
        padding=heights * _WIDTH - sizes,
        first=cells[begins],
    )


def _stats(flat: Array, rows: _PaddedRows) -> tuple[NDArray[Any], ...]:
    """Return the fields of `HistogramData` from `count` to `sum_squares`, one element per array.

    `flat` has the arrays in `rows` without padding.
    """
    values, starts, first, padding = rows.values, rows.starts, rows.first, rows.padding
    begins = np.cumsum(rows.sizes) - rows.sizes
    minimum = np.minimum.reduceat(flat, begins).astype(np.float64)
    maximum = np.maximum.reduceat(flat, begins).astype(np.float64)
    total = np.add.reduceat(values.sum(axis=1), starts) - padding * first
    mean = np.clip(total / rows.sizes, minimum, maximum)
    differences = np.subtract(values, mean[rows.owners, np.newaxis], out=rows.scratch)
    deviations = np.add.reduceat(np.einsum("ij,ij->i", differences, differences), starts)
    deviations = np.maximum(deviations - padding * (first - mean) ** 2, 0.0)
    std = np.sqrt(deviations / rows.sizes)
    return rows.sizes, minimum, maximum, mean, std, total, deviations + rows.sizes * mean**2


def _counts(rows: _PaddedRows, low: Numbers, scale: Numbers, bins: int) -> NDArray[np.int64]:
    """Return the counts, of shape (arrays, bins); overwrites `rows.values`."""
    owners = rows.owners
    positions = np.subtract(rows.values, low[owners, np.newaxis], out=rows.scratch)
    positions *= scale[owners, np.newaxis]
    bin_of = rows.values.reshape(-1).view(np.int32)[: positions.size].reshape(positions.shape)
    np.copyto(bin_of, positions, casting="unsafe")  # this conversion is vectorized to 32 bits only
    bin_of += (owners * (bins + 1)).astype(np.int32)[:, np.newaxis]
    found = _bincount(bin_of.reshape(-1), low.size * (bins + 1))
    found[bin_of[rows.starts, 0]] -= rows.padding
    counts = found.reshape(low.size, bins + 1)
    counts[:, -2] += counts[:, -1]  # the largest value has a bin of its own so far
    return counts[:, :-1]


def _bincount(numbers: NDArray[np.int32], length: int) -> NDArray[np.int64]:
    """Return `np.bincount()`, computed by torch if it is imported, which releases the GIL."""
    torch = sys.modules.get("torch")
    if torch is None:
        return np.bincount(numbers, minlength=length)
    counts: NDArray[np.int64] = torch.bincount(torch.from_numpy(numbers), minlength=length).numpy()
    return counts

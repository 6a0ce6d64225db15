"""Histograms of many tensors on an accelerator, without synchronizing with it.

The tensors are laid out in rows of equal width, block by block, as `histogram_batch` does with
arrays. Only the device knows which values are finite, so no shape depends on that: values that do
not count are masked. A single transfer copies the results to the host.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from metricbus._common.device_values import DeviceCopy, fetch
from metricbus.errors import DeviceError
from metricbus.media.histogram_batch import edges_of
from metricbus.media.histogram_bins import HistogramData

Tensor: TypeAlias = Any

_WIDTH = 256
_BLOCK = 1 << 21  # values at a time; a block needs about ten temporary float64 tensors of this size

_streams: dict[Any, Any] = {}


class PendingHistograms(NamedTuple):
    """Histograms that the device is computing.

    `totals` has the rows of `_totals` and a row of standard deviations, each with one column per
    tensor; `counts` has shape (tensors, bins). Both are flattened.
    """

    totals: DeviceCopy
    counts: DeviceCopy
    tensors: int
    bins: int

    def wait(self) -> list[HistogramData]:
        """Wait for the device and return the histograms; raise `DeviceError` if it fails."""
        fetch([self.totals, self.counts])
        if self.totals.numbers is None or self.counts.numbers is None:
            error = self.totals.error or self.counts.error
            raise DeviceError(f"the device failed to compute histograms: {error}") from error
        totals = np.array(self.totals.numbers).reshape(-1, self.tensors)
        counts = np.array(self.counts.numbers).reshape(self.tensors, self.bins)
        with np.errstate(all="ignore"):
            edges = edges_of(totals[0], totals[1], self.bins)
        return [_histogram(*columns) for columns in zip(totals.T, counts, edges, strict=True)]


class _PaddedBlock(NamedTuple):
    """Rows of values, masks of those that are not padding and that are finite, and row owners."""

    values: Tensor
    valid: Tensor
    finite: Tensor
    owners: Tensor


def start_binning(tensors: Sequence[Tensor], bins: int) -> PendingHistograms:
    """Start binning flat tensors of one dtype in the current stream, without waiting."""
    torch = sys.modules["torch"]
    with torch.no_grad():
        totals = _totals(torch, tensors)
        deviations, counts = _deviations_and_counts(torch, tensors, totals, bins)
        std = (deviations / totals[2]).sqrt()
        results = DeviceCopy(torch.cat([totals, std[None]]).reshape(-1))
        return PendingHistograms(results, DeviceCopy(counts.reshape(-1)), len(tensors), bins)


def count_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """Return the number of NaN and infinite values per flat tensor, as float64, without waiting."""
    torch = sys.modules["torch"]
    with torch.no_grad():
        found = torch.zeros(len(tensors), dtype=torch.float64, device=tensors[0].device)
        for _, valid, finite, owners in _blocks(torch, tensors):
            found.index_add_(0, owners, (valid & ~finite).sum(1, dtype=torch.float64))
    return found


def side_stream(stream: Any, device: Any) -> AbstractContextManager[Any]:
    """Return a context that runs CUDA work in a separate stream, after the work now in `stream`."""
    if device.type != "cuda":
        return nullcontext()
    cuda = sys.modules["torch"].cuda
    own = _streams.get(device)
    if own is None:
        own = _streams[device] = cuda.Stream(device)
    own.wait_event(stream.record_event())
    context: AbstractContextManager[Any] = cuda.stream(own)
    return context


def _totals(torch: Any, tensors: Sequence[Tensor]) -> Tensor:
    """Return rows of minimum, maximum, finite count, NaN, +inf, -inf, sum and sum of squares."""
    options = {"dtype": torch.float64, "device": tensors[0].device}
    minimum = torch.full((len(tensors),), torch.inf, **options)
    maximum = torch.full((len(tensors),), -torch.inf, **options)
    sums = torch.zeros((6, len(tensors)), **options)
    for values, valid, finite, owners in _blocks(torch, tensors):
        lowest = torch.where(finite, values, torch.inf).amin(1)
        highest = torch.where(finite, values, -torch.inf).amax(1)
        minimum.scatter_reduce_(0, owners, lowest, "amin")
        maximum.scatter_reduce_(0, owners, highest, "amax")
        clean = torch.where(finite, values, 0.0)
        nonfinite = (
            valid & mask for mask in (values.isnan(), values.isposinf(), values.isneginf())
        )
        counts = [mask.sum(1, dtype=torch.float64) for mask in (finite, *nonfinite)]
        sums.index_add_(1, owners, torch.stack([*counts, clean.sum(1), clean.square().sum(1)]))
    return torch.cat([minimum[None], maximum[None], sums])


def _deviations_and_counts(
    torch: Any, tensors: Sequence[Tensor], totals: Tensor, bins: int
) -> tuple[Tensor, Tensor]:
    """Return squared deviations, summed per tensor, and counts of shape (tensors, bins)."""
    minimum, maximum, count, total = totals[0], totals[1], totals[2], totals[6]
    mean = torch.where(total.isfinite(), (total / count).clamp(minimum, maximum), torch.nan)
    low, width, scale = _limits(torch, minimum, maximum)
    deviations = torch.zeros_like(mean)
    counts = torch.zeros(len(tensors) * (bins + 1), dtype=torch.int64, device=mean.device)
    for values, _, finite, owners in _blocks(torch, tensors):
        differences = torch.where(finite, values - mean[owners, None], 0.0)
        deviations.index_add_(0, owners, differences.square().sum(1))
        positions = (values * scale[owners, None] - low[owners, None]) / width[owners, None] * bins
        bin_of = torch.where(finite, positions, 0.0).long().clamp_(0, bins)
        bin_of = bin_of + owners[:, None] * (bins + 1)
        counts.scatter_add_(0, bin_of.reshape(-1), finite.reshape(-1).long())
    table = counts.view(len(tensors), bins + 1)
    table[:, -2] += table[:, -1]  # the largest value has a bin of its own so far
    return deviations, table[:, :-1]


def _limits(torch: Any, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first edges, total widths and scales; edges and widths are scaled to be finite.

    The computation matches `histogram_batch.edges_of`.
    """
    margin = torch.where(minimum < maximum, 0.0, (minimum.abs() * 1e-3).clamp(min=0.5))
    largest = torch.finfo(torch.float64).max
    low, high = (minimum - margin).clamp(min=-largest), (maximum + margin).clamp(max=largest)
    scale = torch.where((high - low).isfinite(), 1.0, 0.25).to(torch.float64)
    low = low * scale
    return low, high * scale - low, scale


def _blocks(torch: Any, tensors: Sequence[Tensor]) -> Iterator[_PaddedBlock]:
    """Yield all values in blocks of about `_BLOCK` values; each row belongs to one tensor."""
    pieces: list[tuple[int, Tensor]] = []
    filled = 0
    for owner, tensor in enumerate(tensors):
        for piece in tensor.split(_BLOCK):
            if pieces and filled + piece.numel() > _BLOCK:
                yield _pad_to_rows(torch, pieces)
                pieces, filled = [], 0
            pieces.append((owner, piece))
            filled += piece.numel()
    yield _pad_to_rows(torch, pieces)


def _pad_to_rows(torch: Any, pieces: Sequence[tuple[int, Tensor]]) -> _PaddedBlock:
    device = pieces[0][1].device
    zeros = pieces[0][1].new_zeros(_WIDTH)
    padded: list[Tensor] = []
    rows: list[tuple[int, int]] = []  # the owner, and the number of values without padding
    for owner, piece in pieces:
        size = piece.numel()
        padded += [piece, zeros[: -size % _WIDTH]]
        rows += [(owner, min(_WIDTH, size - start)) for start in range(0, size, _WIDTH)]
    values = torch.cat(padded).view(-1, _WIDTH).double()
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    if device.type == "cuda":  # a copy from pinned memory is asynchronous
        table = table.pin_memory()
    owners, sizes = table.to(device, non_blocking=True).unbind(1)
    valid = torch.arange(_WIDTH, device=device) < sizes[:, None]
    return _PaddedBlock(values, valid, valid & values.isfinite(), owners)


def _histogram(totals: Any, counts: Any, edges: Any) -> HistogramData:
    minimum, maximum, count, nan, infinite, minus_infinite, total, squares, std = totals.tolist()
    nonfinite = int(nan), int(infinite), int(minus_infinite)
    if not count:
        return HistogramData([], [], 0, None, None, None, None, None, None, *nonfinite)
    with np.errstate(over="ignore"):  # the edges may span all of float64
        is_increasing = (np.diff(edges) > 0).all()
    if not is_increasing:  # too few float64 numbers lie between the extremes
        counts, edges = counts.sum(keepdims=True), edges[[0, -1]]
    mean = min(max(total / count, minimum), maximum) if isfinite(total) else total
    mean, std, total, squares = (x if isfinite(x) else None for x in (mean, std, total, squares))
    return HistogramData(
        counts.tolist(), edges.tolist(), int(count), minimum, maximum, mean, std, total, squares,
        *nonfinite,
    )  # fmt: skip

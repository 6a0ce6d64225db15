"""Histograms of many tensors on an accelerator, counted there without waiting for it.

The tensors are laid into rows of equal width, block by block, as `fused_binning` does with arrays.
How many values there are, and which are finite, only the device knows: nothing here depends on it,
what does not count has the weight 0. The results come over by one transfer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from metricbus._common.device_values import DeviceCopy, bring
from metricbus.errors import DeviceError
from metricbus.media.histogram_batch import edges_of
from metricbus.media.histogram_bins import Binned

Tensor: TypeAlias = Any

_WIDTH = 256
_BLOCK = 1 << 21  # values at a time; about ten tensors of so many float64 come and go

_streams: dict[Any, Any] = {}


class Counting(NamedTuple):
    """A counting that the device has been told to do, of as many tensors as `totals` has columns.

    The rows of `totals` are those of `_totals`, and the standard deviation; `counts` has the bins
    of one tensor behind those of the other.
    """

    totals: DeviceCopy
    counts: DeviceCopy
    tensors: int
    bins: int

    def wait(self) -> list[Binned]:
        """The histogram of each tensor; waits for the device, and raises `DeviceError`."""
        bring([self.totals, self.counts])
        if self.totals.numbers is None or self.counts.numbers is None:
            error = self.totals.error or self.counts.error
            raise DeviceError(f"the device gave no histograms: {error}") from error
        totals = np.array(self.totals.numbers).reshape(-1, self.tensors)
        counts = np.array(self.counts.numbers).reshape(self.tensors, self.bins)
        with np.errstate(all="ignore"):
            edges = edges_of(totals[0], totals[1], self.bins)
        return [_binned(*one) for one in zip(totals.T, counts, edges, strict=True)]


class _Block(NamedTuple):
    """Some rows: which of the values count, which of these are finite, and whose each row is."""

    values: Tensor
    valid: Tensor
    finite: Tensor
    owners: Tensor


def start_counting(tensors: Sequence[Tensor], bins: int) -> Counting:
    """Has a device count flat tensors of one type, in the current stream; waits for nothing."""
    torch = sys.modules["torch"]
    with torch.no_grad():
        totals = _totals(torch, tensors)
        deviations, counts = _deviations_and_counts(torch, tensors, totals, bins)
        std = (deviations / totals[2]).sqrt()
        together = torch.cat([totals, std[None]]).reshape(-1)
        return Counting(DeviceCopy(together), DeviceCopy(counts.reshape(-1)), len(tensors), bins)


def nonfinite_in(tensors: Sequence[Tensor]) -> Tensor:
    """How many values of each flat tensor are NaN or infinite, as float64; waits for nothing."""
    torch = sys.modules["torch"]
    with torch.no_grad():
        found = torch.zeros(len(tensors), dtype=torch.float64, device=tensors[0].device)
        for _, valid, finite, owners in _blocks(torch, tensors):
            found.index_add_(0, owners, (valid & ~finite).sum(1, dtype=torch.float64))
    return found


def apart_from(stream: Any, device: Any) -> AbstractContextManager[Any]:
    """A stream of the media worker's own, which goes on from where `stream` is."""
    if device.type != "cuda":
        return nullcontext()
    cuda = sys.modules["torch"].cuda
    own = _streams.get(device)
    if own is None:
        own = _streams[device] = cuda.Stream(device)
    own.wait_event(stream.record_event())
    found: AbstractContextManager[Any] = cuda.stream(own)
    return found


def _totals(torch: Any, tensors: Sequence[Tensor]) -> Tensor:
    """Rows: minimum, maximum, finite values, NaN, the two infinities, sum, sum of squares."""
    like = {"dtype": torch.float64, "device": tensors[0].device}
    minimum = torch.full((len(tensors),), torch.inf, **like)
    maximum = torch.full((len(tensors),), -torch.inf, **like)
    sums = torch.zeros((6, len(tensors)), **like)
    for values, valid, finite, owners in _blocks(torch, tensors):
        least = torch.where(finite, values, torch.inf).amin(1)
        most = torch.where(finite, values, -torch.inf).amax(1)
        minimum.scatter_reduce_(0, owners, least, "amin")
        maximum.scatter_reduce_(0, owners, most, "amax")
        clean = torch.where(finite, values, 0.0)
        odd = (values.isnan(), values.isposinf(), values.isneginf())
        counted = [
            which.sum(1, dtype=torch.float64) for which in (finite, *(valid & o for o in odd))
        ]
        by_row = torch.stack([*counted, clean.sum(1), clean.square().sum(1)])
        sums.index_add_(1, owners, by_row)
    return torch.cat([minimum[None], maximum[None], sums])


def _deviations_and_counts(
    torch: Any, tensors: Sequence[Tensor], totals: Tensor, bins: int
) -> tuple[Tensor, Tensor]:
    """The sum of squared deviations of each tensor, and its counts in a row."""
    minimum, maximum, count, total = totals[0], totals[1], totals[2], totals[6]
    mean = torch.where(total.isfinite(), (total / count).clamp(minimum, maximum), torch.nan)
    low, width, scale = _limits(torch, minimum, maximum)
    deviations = torch.zeros_like(mean)
    counts = torch.zeros(len(tensors) * (bins + 1), dtype=torch.int64, device=mean.device)
    for values, _, finite, owners in _blocks(torch, tensors):
        away = torch.where(finite, values - mean[owners, None], 0.0)
        deviations.index_add_(0, owners, away.square().sum(1))
        place = (values * scale[owners, None] - low[owners, None]) / width[owners, None] * bins
        bin_of = torch.where(finite, place, 0.0).long().clamp_(0, bins) + owners[:, None] * (
            bins + 1
        )
        counts.scatter_add_(0, bin_of.reshape(-1), finite.reshape(-1).long())
    table = counts.view(len(tensors), bins + 1)
    table[:, -2] += table[:, -1]  # the largest value was counted in a bin of its own
    return deviations, table[:, :-1]


def _limits(torch: Any, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the bins begin, and how wide they are in all, both scaled so that they are finite.

    The same as `fused_binning.edges_of`.
    """
    room = torch.where(minimum < maximum, 0.0, (minimum.abs() * 1e-3).clamp(min=0.5))
    most = torch.finfo(torch.float64).max
    low, high = (minimum - room).clamp(min=-most), (maximum + room).clamp(max=most)
    scale = torch.where((high - low).isfinite(), 1.0, 0.25).to(torch.float64)
    low = low * scale
    return low, high * scale - low, scale


def _blocks(torch: Any, tensors: Sequence[Tensor]) -> Iterator[_Block]:
    """All values in rows, each row of one tensor; about `_BLOCK` of them at a time."""
    pieces: list[tuple[int, Tensor]] = []
    filled = 0
    for owner, tensor in enumerate(tensors):
        for piece in tensor.split(_BLOCK):
            if pieces and filled + piece.numel() > _BLOCK:
                yield _in_rows(torch, pieces)
                pieces, filled = [], 0
            pieces.append((owner, piece))
            filled += piece.numel()
    yield _in_rows(torch, pieces)


def _in_rows(torch: Any, pieces: Sequence[tuple[int, Tensor]]) -> _Block:
    device = pieces[0][1].device
    zeros = pieces[0][1].new_zeros(_WIDTH)
    padded: list[Tensor] = []
    rows: list[tuple[int, int]] = []  # the owner, and how many of the values count
    for owner, piece in pieces:
        size = piece.numel()
        padded += [piece, zeros[: -size % _WIDTH]]
        rows += [(owner, min(_WIDTH, size - at)) for at in range(0, size, _WIDTH)]
    values = torch.cat(padded).view(-1, _WIDTH).double()
    owners, sizes = _to(device, torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)).unbind(1)
    valid = torch.arange(_WIDTH, device=device) < sizes[:, None]
    return _Block(values, valid, valid & values.isfinite(), owners)


def _to(device: Any, table: Tensor) -> Tensor:
    """A small table, on the device; from pinned memory, as nobody has to wait for that."""
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def _binned(totals: Any, counts: Any, edges: Any) -> Binned:
    minimum, maximum, count, nan, infinite, minus_infinite, total, squares, std = totals.tolist()
    apart = int(nan), int(infinite), int(minus_infinite)
    if not count:
        return Binned([], [], 0, None, None, None, None, None, None, *apart)
    with np.errstate(over="ignore"):  # from one end of float64 to the other
        grow = (np.diff(edges) > 0).all()
    if not grow:  # float64 has not so many edges between the two
        counts, edges = counts.sum(keepdims=True), edges[[0, -1]]
    mean = min(max(total / count, minimum), maximum) if isfinite(total) else total
    mean, std, total, squares = (x if isfinite(x) else None for x in (mean, std, total, squares))
    return Binned(
        counts.tolist(), edges.tolist(), int(count), minimum, maximum, mean, std, total, squares,
        *apart,
    )  # fmt: skip

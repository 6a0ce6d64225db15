"""Histograms in bounded memory: equally wide bins between the smallest and largest finite value.

Each histogram takes two passes over the values. The first computes the statistics, the second the
counts. Both convert one block at a time to float64. The sums of squared deviations of the blocks
are merged as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances" (1979).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from metricbus.media.arrays import is_tensor

MAX_BINS = 4096
MAX_COPIED_BYTES = 1 << 26
"""Larger values are binned within `log()`, block by block, instead of being copied."""
ACCEPTED = "an array or tensor of real numbers"

_BLOCK = 1 << 17
_DEVICE_BLOCK = 1 << 22


class HistogramData(msgspec.Struct, frozen=True):
    """The content of a `HistogramRecord`, whose fields it shares."""

    counts: list[int]
    edges: list[float]
    count: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    sum: float | None = None
    sum_squares: float | None = None
    nan: int = 0
    infinite: int = 0
    minus_infinite: int = 0


class _RunningStats:
    def __init__(self) -> None:
        self.count = self.nan = self.infinite = self.minus_infinite = 0
        self.minimum, self.maximum = math.inf, -math.inf
        self.mean = self.deviations = 0.0
        self.sums: list[float] = []
        self.squares: list[float] = []

    def add(self, block: NDArray[np.float64]) -> None:
        finite = np.isfinite(block)
        if not finite.all():
            self.nan += int(np.isnan(block).sum())
            self.infinite += int((block == np.inf).sum())
            self.minus_infinite += int((block == -np.inf).sum())
            block = block[finite]
        if not block.size:
            return
        low, high = float(block.min()), float(block.max())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        total = float(block.sum())
        mean = total / block.size if math.isfinite(total) else float((block / block.size).sum())
        mean = min(max(mean, low), high)
        deviations = block - mean
        count = self.count + block.size
        shift, share = mean - self.mean, block.size / count
        self.deviations += float(deviations @ deviations) + shift * shift * share * self.count
        self.mean += mean * share - self.mean * share  # `shift` may have overflowed
        self.count = count
        self.sums.append(total)
        self.squares.append(float(block @ block))


def check_bins(name: str, bins: object, hint: str = "") -> None:
    """Raise `ValueError`, ending with `hint`, unless `bins` is a valid number of bins."""
    if type(bins) is not int or not 1 <= bins <= MAX_BINS:
        raise ValueError(
            f"metric {name!r}: bins= must be an integer from 1 to {MAX_BINS:,}, "
            f"not {bins!r:.60}{hint}"
        )


def bin_values(values: Any, bins: int) -> HistogramData:
    """Return the histogram of an array or a CPU tensor, of any shape and real dtype."""
    stats = _RunningStats()
    with np.errstate(all="ignore"):
        for block in _blocks(values):
            stats.add(block)
        if not stats.count:
            data = HistogramData([], [], 0)
        else:
            low, high = _limits(stats.minimum, stats.maximum)
            data = HistogramData(
                *_count(values, low, high, bins),
                stats.count,
                stats.minimum,
                stats.maximum,
                _finite(stats.mean),
                _finite(math.sqrt(max(0.0, stats.deviations) / stats.count)),
                _finite(_sum(stats.sums)),
                _finite(_sum(stats.squares)),
            )
    return msgspec.structs.replace(
        data, nan=stats.nan, infinite=stats.infinite, minus_infinite=stats.minus_infinite
    )


def histogram_from_counts(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> HistogramData:
    """Return the histogram with these bins; its statistics are estimated from their centers."""
    count = int(counts.sum())
    if not count:
        return HistogramData(counts.tolist(), edges.tolist(), 0)
    filled = np.flatnonzero(counts)
    centers = edges[:-1] / 2 + edges[1:] / 2
    with np.errstate(all="ignore"):
        mean = float((centers * (counts / count)).sum())
        std = float(np.sqrt(((centers - mean) ** 2 * (counts / count)).sum()))
        return HistogramData(
            counts.tolist(),
            edges.tolist(),
            count,
            float(edges[filled[0]]),
            float(edges[filled[-1] + 1]),
            _finite(mean),
            _finite(std),
            _finite(float((centers * counts).sum())),
            _finite(float((centers**2 * counts).sum())),
        )


def bin_on_device(tensor: Any, bins: int) -> HistogramData:
    """Return the histogram of a tensor, computed on its device; only the result is copied."""
    torch = sys.modules["torch"]
    flat = tensor.reshape(-1)
    if not flat.is_floating_point():
        flat = flat.double() if flat.element_size() > 2 else flat.float()
    flat = flat.float() if flat.element_size() < 4 else flat
    nan, above, below = flat.isnan().sum(), flat.isposinf().sum(), flat.isneginf().sum()
    finite = flat[flat.isfinite()]
    nonfinite = [int(n) for n in torch.stack((nan, above, below)).tolist()]
    if not finite.numel():
        return HistogramData([], [], 0, None, None, None, None, None, None, *nonfinite)
    minimum, maximum = finite.aminmax()
    low, high = _limits(float(minimum), float(maximum))
    if not math.isfinite(high - low) or not _is_divisible(low, high, bins):
        return bin_values(flat.cpu().numpy(), bins)
    edges = _edges(low, high, bins)
    counts = _count_on_device(torch, finite, edges[1:-1])
    total, squares = finite.sum(dtype=torch.float64), finite.double().square().sum()
    mean = total / finite.numel()
    std = (finite.double() - mean).square().mean().sqrt()
    numbers = torch.stack([total, squares, mean, std]).tolist()
    total, squares, mean, std = map(_finite, numbers)
    return HistogramData(
        counts, edges.tolist(), finite.numel(), float(minimum), float(maximum),
        mean, std, total, squares, *nonfinite,
    )  # fmt: skip


def _count_on_device(torch: Any, finite: Any, inner_edges: NDArray[np.float64]) -> list[int]:
    """Return the counts, found by comparison in float64 as in numpy; torch.histc() would round."""
    edges = torch.from_numpy(inner_edges).to(finite.device)
    counts = torch.zeros(inner_edges.size + 1, dtype=torch.int64, device=finite.device)
    for block in finite.split(_DEVICE_BLOCK):
        indices = torch.bucketize(block.double(), edges, right=True)
        counts += torch.bincount(indices, minlength=inner_edges.size + 1)
    return list(map(int, counts.tolist()))


def _blocks(values: Any) -> Iterator[NDArray[np.float64]]:
    """Yield the values in memory order; a block is valid until the next one is requested."""
    if is_tensor(values):  # numpy lacks some of torch's dtypes
        for part in values.reshape(-1).split(_BLOCK):
            yield part.double().numpy()
        return
    with np.nditer(
        values,
        ["buffered", "external_loop", "zerosize_ok"],
        op_dtypes=[np.float64],
        casting="unsafe",
        buffersize=_BLOCK,
    ) as blocks:
        yield from blocks


def _limits(minimum: float, maximum: float) -> tuple[float, float]:
    """Return the first and the last edge; they lie apart even if all values are equal."""
    if minimum < maximum:
        return minimum, maximum
    margin = max(0.5, abs(minimum) * 1e-3)
    largest = sys.float_info.max
    return max(minimum - margin, -largest), min(maximum + margin, largest)


def _is_divisible(low: float, high: float, bins: int) -> bool:
    """Check whether there are enough float64 numbers between the limits for distinct edges."""
    return bool((np.diff(_edges(low, high, bins)) > 0).all())


def _edges(low: float, high: float, bins: int) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # linspace() may overflow before it sets the last edge
        return np.linspace(low, high, bins + 1)


def _count(values: Any, low: float, high: float, bins: int) -> tuple[list[int], list[float]]:
    """Return the counts and edges; there is one bin if the limits are too close for more."""
    scale = 1.0 if math.isfinite(high - low) else 0.25
    low, high = low * scale, high * scale
    if not _is_divisible(low, high, bins):
        bins = 1
    counts = np.zeros(bins, np.int64)
    for block in _blocks(values):
        finite = block[np.isfinite(block)] * scale
        counts += np.histogram(finite, bins, (low, high))[0] if bins > 1 else finite.size
    return counts.tolist(), (_edges(low, high, bins) / scale).tolist()


def _sum(parts: list[float]) -> float:
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):
        return math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Histograms in bounded memory: bins of equal width between the extremes of the finite values.

Two sweeps over the values in blocks: the totals, with the sums of squared deviations merged as in
Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances" (1979); then the counts. Only a block at a time is held as float64.
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

MOST_BINS = 4096
COPIED_BYTES = 1 << 26
"""Of more, the call itself counts, block by block, and copies nothing."""
ACCEPTED = "an array or tensor of real numbers"

_BLOCK = 1 << 17
_DEVICE_BLOCK = 1 << 22


class Binned(msgspec.Struct, frozen=True):
    """What a histogram's record has; None where a float64 cannot say it."""

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


class _Totals:
    """The totals of the blocks so far."""

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
        away = block - mean
        count = self.count + block.size
        apart, share = mean - self.mean, block.size / count
        self.deviations += float(away @ away) + apart * apart * share * self.count
        self.mean += mean * share - self.mean * share  # the difference itself may be too large
        self.count = count
        self.sums.append(total)
        self.squares.append(float(block @ block))


def check_bins(name: str, bins: object, hint: str = "") -> None:
    """`ValueError` unless it is a number of bins."""
    if type(bins) is not int or not 1 <= bins <= MOST_BINS:
        raise ValueError(
            f"metric {name!r}: bins= is a whole number from 1 to {MOST_BINS:,}, "
            f"not {bins!r:.60}{hint}"
        )


def bin_values(values: Any, bins: int) -> Binned:
    """The histogram of an array, or a tensor in main memory, of any shape and real type."""
    totals = _Totals()
    with np.errstate(all="ignore"):
        for block in _blocks(values):
            totals.add(block)
        if not totals.count:
            left = Binned([], [], 0)
        else:
            low, high = _limits(totals.minimum, totals.maximum)
            counts, edges = _count(values, low, high, bins)
            left = Binned(
                counts,
                edges,
                totals.count,
                totals.minimum,
                totals.maximum,
                _finite(totals.mean),
                _finite(math.sqrt(max(0.0, totals.deviations) / totals.count)),
                _finite(_sum(totals.sums)),
                _finite(_sum(totals.squares)),
            )
    return msgspec.structs.replace(
        left, nan=totals.nan, infinite=totals.infinite, minus_infinite=totals.minus_infinite
    )


def binned(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> Binned:
    """A histogram that somebody else has made; the mean and the like are by the bins' middles."""
    count = int(counts.sum())
    lists = counts.tolist(), edges.tolist()
    if not count:
        return Binned(*lists, 0)
    filled = np.flatnonzero(counts)
    middles = edges[:-1] / 2 + edges[1:] / 2
    with np.errstate(all="ignore"):
        mean = float((middles * (counts / count)).sum())
        std = float(np.sqrt(((middles - mean) ** 2 * (counts / count)).sum()))
        return Binned(
            *lists,
            count,
            float(edges[filled[0]]),
            float(edges[filled[-1] + 1]),
            _finite(mean),
            _finite(std),
            _finite(float((middles * counts).sum())),
            _finite(float((middles**2 * counts).sum())),
        )


def bin_on_device(tensor: Any, bins: int) -> Binned:
    """The same of a tensor on an accelerator, computed there: only the counts come over."""
    torch = sys.modules["torch"]
    flat = tensor.reshape(-1)
    if not flat.is_floating_point():
        flat = flat.double() if flat.element_size() > 2 else flat.float()
    flat = flat.float() if flat.element_size() < 4 else flat
    nan, above, below = flat.isnan().sum(), flat.isposinf().sum(), flat.isneginf().sum()
    finite = flat[flat.isfinite()]
    apart = [int(n) for n in torch.stack((nan, above, below)).tolist()]
    if not finite.numel():
        return Binned([], [], 0, None, None, None, None, None, None, *apart)
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
    return Binned(
        counts, edges.tolist(), finite.numel(), float(minimum), float(maximum),
        mean, std, total, squares, *apart,
    )  # fmt: skip


def _count_on_device(torch: Any, finite: Any, inner: NDArray[np.float64]) -> list[int]:
    """By comparison with the edges in float64, as numpy does; histc() would round."""
    between = torch.from_numpy(inner).to(finite.device)
    counts = torch.zeros(inner.size + 1, dtype=torch.int64, device=finite.device)
    for block in finite.split(_DEVICE_BLOCK):
        where = torch.bucketize(block.double(), between, right=True)
        counts += torch.bincount(where, minlength=inner.size + 1)
    return list(map(int, counts.tolist()))


def _blocks(values: Any) -> Iterator[NDArray[np.float64]]:
    """The values in whatever order they lie in memory; a block is gone when the next one comes."""
    if is_tensor(values):  # numpy does not know all of its types
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
    """Around a constant, some room."""
    if minimum < maximum:
        return minimum, maximum
    room = max(0.5, abs(minimum) * 1e-3)
    most = sys.float_info.max
    return max(minimum - room, -most), min(maximum + room, most)


def _is_divisible(low: float, high: float, bins: int) -> bool:
    """Whether float64 has that many edges between the two."""
    return bool((np.diff(_edges(low, high, bins)) > 0).all())


def _edges(low: float, high: float, bins: int) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # the last one, before it is set to `high`
        return np.linspace(low, high, bins + 1)


def _count(values: Any, low: float, high: float, bins: int) -> tuple[list[int], list[float]]:
    scale = 1.0 if math.isfinite(high - low) else 0.25
    low, high = low * scale, high * scale
    if not _is_divisible(low, high, bins):
        bins = 1
    counts = np.zeros(bins, np.int64)
    for block in _blocks(values):
        inside = block[np.isfinite(block)] * scale
        counts += np.histogram(inside, bins, (low, high))[0] if bins > 1 else inside.size
    return counts.tolist(), (_edges(low, high, bins) / scale).tolist()


def _sum(parts: list[float]) -> float:
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):
        return math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

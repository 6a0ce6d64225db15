"""Statistics of one series: of the values in one block of a segment, or of a whole run.

Values are processed in chunks, by builtins that run in C. numpy is not used: this code runs in the
training process, which need not have imported numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from metricbus._common.exact_sum import ExactSum
from metricbus._common.records import Number, StoredNumber, number_from_json, number_to_json

BUCKETS = 128  # even: merged in pairs


class SeriesStats(msgspec.Struct, array_like=True, gc=False):
    """Statistics of consecutive values of one series.

    `nan` counts the NaN values; `low`, `high` and `total` ignore them, and `low` and `high` are NaN
    if there are no other values. `first` and `last` are the values at the ends, in journal order.
    `first_at`, `low_at`, `high_at` and `last_at` are the steps of `first`, `low`, `high` and
    `last`; `min_step` and `max_step` are the smallest and the largest step. `total` is the state of
    an `ExactSum`.
    """

    count: int = 0
    nan: int = 0
    min_step: int = 1 << 63
    max_step: int = -(1 << 63)
    first: StoredNumber = math.nan
    first_at: int = 0
    low: StoredNumber = math.nan
    low_at: int = 0
    high: StoredNumber = math.nan
    high_at: int = 0
    last: StoredNumber = math.nan
    last_at: int = 0
    total: list[StoredNumber] = msgspec.field(default_factory=lambda: [0.0])

    @property
    def numbers(self) -> int:
        """How many of the values are not NaN."""
        return self.count - self.nan

    @property
    def mean(self) -> float | None:
        """The mean of the values that are not NaN; None if there are none."""
        return ExactSum.restored(self.total).value() / self.numbers if self.numbers else None

    def merge(self, later: SeriesStats) -> None:
        """Append the values that `later` describes."""
        if not self.count:
            self.first, self.first_at = later.first, later.first_at
        if later.numbers:
            # Not a number is neither smaller nor larger, so the comparison is negated.
            if not self.low <= later.low:
                self.low, self.low_at = later.low, later.low_at
            if not self.high >= later.high:
                self.high, self.high_at = later.high, later.high_at
        self.count += later.count
        self.nan += later.nan
        self.min_step = min(self.min_step, later.min_step)
        self.max_step = max(self.max_step, later.max_step)
        self.last, self.last_at = later.last, later.last_at
        total = ExactSum.restored(self.total)
        total.merge(ExactSum.restored(later.total))
        self.total = total.state()

    def as_json(self) -> SeriesStats:
        """Return a copy in which NaN and the infinities are strings."""
        return self._mapped(number_to_json)

    def from_json(self) -> SeriesStats:
        """Return a copy in which the strings for NaN and the infinities are numbers."""
        return self._mapped(number_from_json)

    def _mapped(self, function: Callable[[Number], Number]) -> SeriesStats:
        return msgspec.structs.replace(
            self,
            first=function(self.first),
            low=function(self.low),
            high=function(self.high),
            last=function(self.last),
            total=list(map(function, self.total)),
        )


def stats_of(values: Sequence[Number], steps: Sequence[int]) -> SeriesStats:
    """Return the statistics of values and their steps, both equally long and not empty."""
    numbers, numbers_at = values, steps
    total = _sum(values)
    # One NaN among the values makes the sum NaN.
    if math.isnan(total):
        pairs = [pair for pair in zip(values, steps, strict=True) if not math.isnan(pair[0])]
        numbers, numbers_at = [value for value, _ in pairs], [step for _, step in pairs]
        total = _sum(numbers)
    stats = SeriesStats(
        count=len(values),
        nan=len(values) - len(numbers),
        min_step=min(steps),
        max_step=max(steps),
        first=values[0],
        first_at=steps[0],
        last=values[-1],
        last_at=steps[-1],
        total=[0.0, total] if math.isfinite(total) else [total],
    )
    if numbers:
        stats.low, stats.high = min(numbers), max(numbers)
        stats.low_at = numbers_at[numbers.index(stats.low)]
        stats.high_at = numbers_at[numbers.index(stats.high)]
    return stats


def _sum(values: Sequence[Number]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        # An intermediate sum overflows, or the values include both infinities.
        total = ExactSum()
        for value in values:
            if type(value) is int:
                total.add_integer(value)
            else:
                total.add(value)
        return total.value()


class Course:
    """The course of a series of any length: the extremes of at most `BUCKETS` consecutive parts.

    A bucket holds `width` values. When the series outgrows the buckets, adjacent ones are merged
    and `width` doubles, so every extreme value is kept. Values that are not finite are ignored.
    """

    def __init__(self) -> None:
        self.width = 1
        self._count = 0
        self._low = [math.inf] * BUCKETS
        self._high = [-math.inf] * BUCKETS

    def add(self, values: Sequence[Number]) -> None:
        """Append values."""
        position = 0
        while position < len(values):
            self._make_room(1)
            part = values[position : position + self.width - self._count % self.width]
            position += len(part)
            finite = part if math.isfinite(sum(part)) else list(filter(math.isfinite, part))
            self.add_part(len(part), min(finite, default=math.nan), max(finite, default=math.nan))

    def add_part(self, count: int, low: Number, high: Number) -> None:
        """Append `count` values of which only the extremes are known."""
        self._make_room(count)
        first, end = self._count // self.width, -(-(self._count + count) // self.width)
        self._count += count
        if finite := [float(value) for value in (low, high) if math.isfinite(value)]:
            for bucket in range(first, end):
                self._low[bucket] = min(self._low[bucket], *finite)
                self._high[bucket] = max(self._high[bucket], *finite)

    def _make_room(self, count: int) -> None:
        """Merge adjacent buckets until `count` more values fit."""
        while self._count + count > BUCKETS * self.width:
            unused = BUCKETS // 2
            self._low = [*map(min, self._low[0::2], self._low[1::2]), *[math.inf] * unused]
            self._high = [*map(max, self._high[0::2], self._high[1::2]), *[-math.inf] * unused]
            self.width *= 2

    def extremes(self) -> list[tuple[float, float] | None]:
        """Return the lowest and the highest value of each bucket; None if it has no finite ones."""
        used = -(-self._count // self.width)
        pairs = zip(self._low[:used], self._high[:used], strict=True)
        return [pair if pair[0] <= pair[1] else None for pair in pairs]

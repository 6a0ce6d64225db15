"""Streaming reductions: the classes behind `bus.define(reduce=...)`, and their names.

A NaN among the values makes every result NaN, except that of `count`, `first` and `last`.
Infinities follow IEEE 754 (inf - inf is NaN).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from metricbus._aggregate.reduction_base import Reduction
from metricbus._common.exact_sum import ExactSum
from metricbus._common.records import Number
from metricbus._common.validation import INT_MAX, INT_MIN, suggestion, to_number
from metricbus.errors import ConfigError

Reducer: TypeAlias = str | Callable[[list[Number]], Number]
"""The type of `define(reduce=)`: a name, or a function of all values of a window."""

EXACT_QUANTILES = 65_536
"""The number of values up to which quantiles are exact, and the size of the sample above it."""

EMA_DECAY = 0.98
"""The default weight of the previous average in `ema`. A name such as `ema0.9` sets another one."""

AcrossRanks: TypeAlias = Literal["mean", "sum", "min", "max", "count", "std"]
"""The type of `define(across_ranks=)`: the reductions that can be merged from parts."""


class Mean(Reduction):
    """The weighted mean: the sum of w*v over the sum of w; NaN while all weights are 0.

    A mean of means would be wrong where parts differ in weight, so a part keeps both sums. Each is
    rounded once, so the result does not depend on the order or the split of the values.
    """

    can_merge = True
    is_identity_for_one = True

    def __init__(self) -> None:
        self._total, self._weight = ExactSum(), ExactSum()

    def add(self, value: Number, weight: float = 1.0) -> None:
        self._total.add(weight * value)
        self._weight.add(weight)

    def merge(self, other: Reduction) -> None:
        assert isinstance(other, Mean)
        self._total.merge(other._total)
        self._weight.merge(other._weight)

    def result(self) -> float:
        weight = self._weight.value()
        return self._total.value() / weight if weight else math.nan


class Sum(Reduction):
    """The sum: an int if all values are ints and it fits 64 bits, else a float rounded once."""

    can_merge = True
    is_identity_for_one = True

    def __init__(self) -> None:
        self._integers = 0
        self._floats = ExactSum()
        self._all_integers = True

    def add(self, value: Number, weight: float = 1.0) -> None:
        if isinstance(value, int):
            self._integers += value
        else:
            self._floats.add(value)
            self._all_integers = False

    def merge(self, other: Reduction) -> None:
        assert isinstance(other, Sum)
        self._integers += other._integers
        self._floats.merge(other._floats)
        self._all_integers &= other._all_integers

    def result(self) -> Number:
        if self._all_integers and INT_MIN <= self._integers <= INT_MAX:
            return self._integers
        total = ExactSum()
        total.merge(self._floats)
        total.add_integer(self._integers)
        return total.value()


class Extreme(Reduction):
    """The minimum or the maximum; NaN if any value is NaN."""

    can_merge = True
    is_identity_for_one = True
    parameters = frozenset(("_better",))

    def __init__(self, better: Callable[[Number, Number], Number]) -> None:
        self._better = better
        self._best: Number | None = None

    def add(self, value: Number, weight: float = 1.0) -> None:
        best = self._best
        if best is None or math.isnan(value):
            self._best = value
        elif not math.isnan(best):
            self._best = self._better(best, value)

    def merge(self, other: Reduction) -> None:
        assert isinstance(other, Extreme)
        if other._best is not None:
            self.add(other._best)

    def result(self) -> Number:
        return math.nan if self._best is None else self._best


class First(Reduction):
    """The first value."""

    is_identity_for_one = True

    def __init__(self) -> None:
        self._value: Number | None = None

    def add(self, value: Number, weight: float = 1.0) -> None:
        if self._value is None:
            self._value = value

    def result(self) -> Number:
        return math.nan if self._value is None else self._value


class Last(Reduction):
    """The last value."""

    is_identity_for_one = True

    def __init__(self) -> None:
        self._value: Number = math.nan

    def add(self, value: Number, weight: float = 1.0) -> None:
        self._value = value

    def result(self) -> Number:
        return self._value


class Count(Reduction):
    """The number of values."""

    can_merge = True
    needs_multiple = True

    def __init__(self) -> None:
        self._count = 0

    def add(self, value: Number, weight: float = 1.0) -> None:
        self._count += 1

    def merge(self, other: Reduction) -> None:
        assert isinstance(other, Count)
        self._count += other._count

    def result(self) -> int:
        return self._count


class Std(Reduction):
    """The weighted population standard deviation: sqrt(sum w*(v-m)^2 / sum w).

    NaN while all weights are 0, and if any value is infinite. Numerically stable also if the
    deviation is small compared with the mean: the update is that of B. P. Welford, Technometrics 4
    (1962), 419-420; the weights and the merge are those of T. F. Chan, G. H. Golub and R. J.
    LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", Stanford
    STAN-CS-79-773 (1979).
    """

    can_merge = True
    needs_multiple = True

    def __init__(self) -> None:
        self._weight = self._mean = self._squares = 0.0

    def add(self, value: Number, weight: float = 1.0) -> None:
        self._add_moments(weight, float(value), 0.0)

    def merge(self, other: Reduction) -> None:
        assert isinstance(other, Std)
        self._add_moments(other._weight, other._mean, other._squares)

    def _add_moments(self, weight: float, mean: float, squares: float) -> None:
        total = self._weight + weight
        if not weight:
            # Adds nothing unless the mean is NaN or infinite, which makes the result NaN.
            self._mean += 0.0 * mean
            return
        delta = mean - self._mean if self._weight else 0.0
        self._mean = self._mean + delta * (weight / total) if self._weight else self._mean + mean
        self._squares += squares + delta * delta * (self._weight / total) * weight
        self._weight = total

    def result(self) -> float:
        if not self._weight or not math.isfinite(self._mean):
            return math.nan
        return math.sqrt(self._squares / self._weight)


class Ema(Reduction):
    """The exponential moving average a = decay*a + (1-decay)*v, starting at the first value."""

    is_cumulative = True
    parameters = frozenset(("_decay",))

    def __init__(self, decay: float = EMA_DECAY) -> None:
        self._decay = decay
        self._average: float | None = None

    def add(self, value: Number, weight: float = 1.0) -> None:
        previous = self._average
        if previous is None:
            self._average = float(value)
        else:
            self._average = self._decay * previous + (1 - self._decay) * value

    def result(self) -> float:
        return math.nan if self._average is None else self._average


class Quantile(Reduction):
    """The q-quantile, 0 <= q <= 1, with linear interpolation as in `numpy.quantile`.

    Exact for up to `EXACT_QUANTILES` values. For more, it is the quantile of a uniform sample of
    that size, drawn by a generator with a fixed seed: algorithm R in J. S. Vitter, "Random Sampling
    with a Reservoir", ACM Transactions on Mathematical Software 11 (1985), 37-57.
    """

    is_identity_for_one = True
    parameters = frozenset(("_q",))

    def __init__(self, q: float) -> None:
        self._q = q
        self._values: list[Number] = []
        self._count = 0
        self._nan = False
        self._random = random.Random(0)

    def add(self, value: Number, weight: float = 1.0) -> None:
        self._count += 1
        self._nan = self._nan or math.isnan(value)
        if len(self._values) < EXACT_QUANTILES:
            self._values.append(value)
        elif (index := self._random.randrange(self._count)) < EXACT_QUANTILES:
            self._values[index] = value

    def result(self) -> float:
        if self._nan or not self._values:
            return math.nan
        values = sorted(self._values)
        position = self._q * (len(values) - 1)
        below = math.floor(position)
        low, high = float(values[below]), float(values[math.ceil(position)])
        # Interpolating between two equal infinities would give NaN.
        return low if low == high else low + (high - low) * (position - below)


class Custom(Reduction):
    """A user-defined function of the list of all values of the window.

    `result()` raises what the function raises, and `TypeError` if it does not return a number.
    """

    parameters = frozenset(("_function",))

    def __init__(self, function: Callable[[list[Number]], Number]) -> None:
        self._function = function
        self._values: list[Number] = []

    def add(self, value: Number, weight: float = 1.0) -> None:
        self._values.append(value)

    def result(self) -> Number:
        name = getattr(self._function, "__name__", "reduce")
        return to_number(f"the result of {name}()", self._function(self._values))


_BY_NAME: dict[str, Callable[[], Reduction]] = {
    "mean": Mean,
    "sum": Sum,
    "min": partial(Extreme, min),
    "max": partial(Extreme, max),
    "first": First,
    "last": Last,
    "count": Count,
    "std": Std,
    "median": partial(Quantile, 0.5),
    "ema": Ema,
}
_SYNONYMS = {"avg": "mean", "average": "mean", "var": "std", "total": "sum"}
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?|100)")
_EMA = re.compile(r"ema(0?\.\d+)")


def reduction_factory(reduce: Reducer) -> Callable[[], Reduction]:
    """Return a function that makes empty reductions of the given kind.

    `reduce` is a function, a name of `_BY_NAME`, a percentile such as `p95` or `p99.9`, or an
    exponential moving average with its decay, such as `ema0.9`. For anything else, raises
    `ConfigError` that suggests a similar name if there is one.
    """
    if callable(reduce):
        return partial(Custom, reduce)
    if not isinstance(reduce, str):
        raise ConfigError(f"reduce= must be a name or a function, not {reduce!r:.60}")
    if reduce in _BY_NAME:
        return _BY_NAME[reduce]
    if match := _QUANTILE.fullmatch(reduce):
        return partial(Quantile, float(match[1]) / 100)
    if match := _EMA.fullmatch(reduce):
        return partial(Ema, float(match[1]))
    hint = suggestion(_SYNONYMS.get(reduce, reduce), _BY_NAME)
    raise ConfigError(
        f"unknown reduction {reduce!r}{hint} Use {', '.join(_BY_NAME)}, a percentile such as "
        "'p95', 'ema0.9', or a function of a list of values"
    )

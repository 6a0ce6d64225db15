"""Streaming reductions: many values of a name become one.

A reduction sees the values in the order of the calls. Each says whether it `merges`: whether
reducing parts and merging them gives the same as reducing the whole, so that it can be split over
windows and ranks. (A mean of means is no mean, as parts may differ in weight: parts carry sums and
weights, not results.)

NaN is never swallowed: with a NaN among the values, every result but `count`, `first` and `last` is
NaN. Infinities follow IEEE 754 (inf - inf is NaN).
"""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

from metricbus._aggregate.exact_sum import ExactSum
from metricbus._common.records import Number
from metricbus._common.validation import INT_MAX, INT_MIN, to_number
from metricbus.errors import ConfigError

Reducer: TypeAlias = str | Callable[[list[Number]], Number]
"""What `define(reduce=)` takes: a name, or a function of all values of the window."""

EXACT_QUANTILES = 65_536
"""Quantiles are exact for up to so many values; beyond, they are those of a sample of that size."""

EMA_DECAY = 0.98
"""The share of the old average in `ema`; `ema0.9` has another."""

AcrossRanks: TypeAlias = Literal["mean", "sum", "min", "max", "count", "std"]
"""What `define(across_ranks=)` takes: those that give the same for parts as for the whole."""


class Reduction(ABC):
    """One open reduction of one name."""

    merges: ClassVar[bool] = False
    leaves_one_value: ClassVar[bool] = False  # whether a single value's reduction is that value
    given: ClassVar[frozenset[str]] = frozenset()  # what it was made with, and has not seen
    needs_several: ClassVar[bool] = False  # whether a single value's reduction tells nothing of it
    goes_on: ClassVar[bool] = False  # whether it is not begun anew after it has been emitted

    @abstractmethod
    def add(self, value: Number, weight: float = 1.0) -> None:
        """Takes a value. The weight matters to `mean` and `std` alone."""

    @abstractmethod
    def result(self) -> Number:
        """The reduction of what was added, which is at least one value."""

    def merge(self, other: Reduction) -> None:
        """Takes in what another of the same kind has seen; `TypeError` unless it `merges`."""
        raise TypeError(f"{type(self).__name__} cannot be put together from parts")

    def state(self) -> dict[str, Any]:
        """What it has seen, as plain lists, texts and numbers: for checkpoints of any kind."""
        return {name: _plain(value) for name, value in vars(self).items() if name not in self.given}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Becomes what another of the same kind was when it gave this `state`."""
        for name in vars(self).keys() - self.given:
            setattr(self, name, _like(getattr(self, name), state[name]))


class Mean(Reduction):
    """The weighted mean: the sum of w*v over the sum of w; NaN while all weights are 0.

    Both sums are rounded once, so it does not depend on order or split.
    """

    merges = True
    leaves_one_value = True

    def __init__(self) -> None:
        self._total, self._weight = ExactSum(), ExactSum()

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Takes a value with its weight, the batch's size for one."""
        self._total.add(weight * value)
        self._weight.add(weight)

    def merge(self, other: Reduction) -> None:
        """Adds the other's sums."""
        assert isinstance(other, Mean)
        self._total.merge(other._total)
        self._weight.merge(other._weight)

    def result(self) -> float:
        """The mean."""
        weight = self._weight.value()
        return self._total.value() / weight if weight else math.nan


class Sum(Reduction):
    """The sum: exact for integers as long as 64 bits hold it, rounded once for floats."""

    merges = True
    leaves_one_value = True

    def __init__(self) -> None:
        self._integers = 0
        self._floats = ExactSum()
        self._all_integers = True

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Takes a value; the weight does not matter."""
        if isinstance(value, int):
            self._integers += value
        else:
            self._floats.add(value)
            self._all_integers = False

    def merge(self, other: Reduction) -> None:
        """Adds the other's sums."""
        assert isinstance(other, Sum)
        self._integers += other._integers
        self._floats.merge(other._floats)
        self._all_integers &= other._all_integers

    def result(self) -> Number:
        """The sum."""
        if self._all_integers and INT_MIN <= self._integers <= INT_MAX:
            return self._integers
        whole = ExactSum()
        whole.merge(self._floats)
        whole.add_integer(self._integers)
        return whole.value()


class Extreme(Reduction):
    """The smallest or the largest value; NaN once there was a NaN."""

    merges = True
    leaves_one_value = True

    given = frozenset(("_better",))

    def __init__(self, better: Callable[[Number, Number], Number]) -> None:
        self._better = better
        self._best: Number | None = None

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Takes a value; the weight does not matter."""
        best = self._best
        if best is None or math.isnan(value):
            self._best = value
        elif not math.isnan(best):
            self._best = self._better(best, value)

    def merge(self, other: Reduction) -> None:
        """Takes the other's best."""
        assert isinstance(other, Extreme)
        if other._best is not None:
            self.add(other._best)

    def result(self) -> Number:
        """The best."""
        return math.nan if self._best is None else self._best


class First(Reduction):
    """The value that came first."""

    leaves_one_value = True

    def __init__(self) -> None:
        self._value: Number | None = None

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Keeps the first."""
        if self._value is None:
            self._value = value

    def result(self) -> Number:
        """The first."""
        return math.nan if self._value is None else self._value


class Last(Reduction):
    """The value that came last."""

    leaves_one_value = True

    def __init__(self) -> None:
        self._value: Number = math.nan

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Keeps the newest."""
        self._value = value

    def result(self) -> Number:
        """The last."""
        return self._value


class Count(Reduction):
    """How many values there were."""

    merges = True
    needs_several = True

    def __init__(self) -> None:
        self._count = 0

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Counts it."""
        self._count += 1

    def merge(self, other: Reduction) -> None:
        """Adds the other's count."""
        assert isinstance(other, Count)
        self._count += other._count

    def result(self) -> int:
        """The count."""
        return self._count


class Std(Reduction):
    """The (weighted) standard deviation of the values as a population: sqrt(sum w*(v-m)^2 / sum w).

    Stable also where the deviation is small beside the mean: the update of B. P. Welford,
    Technometrics 4 (1962), 419-420, with the weights and the merge of T. F. Chan, G. H. Golub and
    R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
    Stanford STAN-CS-79-773 (1979).
    """

    merges = True
    needs_several = True

    def __init__(self) -> None:
        self._weight = self._mean = self._squares = 0.0

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Takes a value with its weight."""
        self._take(weight, float(value), 0.0)

    def merge(self, other: Reduction) -> None:
        """Takes in the other's values."""
        assert isinstance(other, Std)
        self._take(other._weight, other._mean, other._squares)

    def _take(self, weight: float, mean: float, squares: float) -> None:
        total = self._weight + weight
        if not weight:
            self._mean += 0.0 * mean  # nothing, unless it is NaN or infinite
            return
        delta = mean - self._mean if self._weight else 0.0
        self._mean = self._mean + delta * (weight / total) if self._weight else self._mean + mean
        self._squares += squares + delta * delta * (self._weight / total) * weight
        self._weight = total

    def result(self) -> float:
        """The standard deviation; NaN while all weights are 0, and where there was an infinity."""
        if not self._weight or not math.isfinite(self._mean):
            return math.nan
        return math.sqrt(self._squares / self._weight)


class Ema(Reduction):
    """The exponential moving average, begun at the first value: a = decay*a + (1-decay)*v."""

    goes_on = True

    given = frozenset(("_decay",))

    def __init__(self, decay: float = EMA_DECAY) -> None:
        self._decay = decay
        self._average: float | None = None

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Moves the average towards the value; the weight does not matter."""
        old = self._average
        if old is None:
            self._average = float(value)
        else:
            self._average = self._decay * old + (1 - self._decay) * value

    def result(self) -> float:
        """The average."""
        return math.nan if self._average is None else self._average


class Quantile(Reduction):
    """The q-quantile with linear interpolation between neighbours, as `numpy.quantile` has it.

    Exact for up to `EXACT_QUANTILES` values. Beyond, it is that of a uniform sample of that many,
    drawn by a generator with a fixed seed: algorithm R in J. S. Vitter, "Random Sampling with a
    Reservoir", ACM Transactions on Mathematical Software 11 (1985), 37-57.
    """

    leaves_one_value = True

    given = frozenset(("_q",))

    def __init__(self, q: float) -> None:
        self._q = q
        self._values: list[Number] = []
        self._count = 0
        self._nan = False
        self._random = random.Random(0)

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Takes a value; the weight does not matter."""
        self._count += 1
        self._nan = self._nan or math.isnan(value)
        if len(self._values) < EXACT_QUANTILES:
            self._values.append(value)
        elif (place := self._random.randrange(self._count)) < EXACT_QUANTILES:
            self._values[place] = value

    def result(self) -> float:
        """The quantile."""
        if self._nan or not self._values:
            return math.nan
        values = sorted(self._values)
        position = self._q * (len(values) - 1)
        below = math.floor(position)
        low, high = float(values[below]), float(values[math.ceil(position)])
        if low == high:  # also where both are the same infinity
            return low
        return low + (high - low) * (position - below)


class Custom(Reduction):
    """What a function of the user's own makes of all values of the window."""

    given = frozenset(("_function",))

    def __init__(self, function: Callable[[list[Number]], Number]) -> None:
        self._function = function
        self._values: list[Number] = []

    def add(self, value: Number, weight: float = 1.0) -> None:
        """Keeps the value; the weight does not matter."""
        self._values.append(value)

    def result(self) -> Number:
        """What the function says; whatever it raises, and `TypeError` if that is no number."""
        name = getattr(self._function, "__name__", "reduce")
        return to_number(f"the result of {name}()", self._function(self._values))


def _plain(value: Any) -> Any:
    if isinstance(value, ExactSum):
        return value.state()
    if isinstance(value, random.Random):
        version, numbers, rest = value.getstate()
        return [version, list(numbers), rest]
    return list(value) if isinstance(value, list) else value


def _like(now: Any, saved: Any) -> Any:
    """What `_plain` has made plain, as the kind of thing that stands there now."""
    if isinstance(now, ExactSum):
        return ExactSum.restored(saved)
    if isinstance(now, random.Random):
        version, numbers, rest = saved
        generator = random.Random()
        generator.setstate((version, tuple(numbers), rest))
        return generator
    return list(saved) if isinstance(now, list) else saved


_SIMPLE: dict[str, Callable[[], Reduction]] = {
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
_OTHER_WORDS = {"avg": "mean", "average": "mean", "var": "std", "total": "sum"}
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?|100)")
_EMA = re.compile(r"ema(0?\.\d+)")


def reduction_factory(reduce: Reducer) -> Callable[[], Reduction]:
    """What makes a fresh reduction of this kind; `ConfigError` with near names for an unknown one.

    `p95` and `p99.9` are quantiles, `ema0.9` an average with that decay.
    """
    if callable(reduce):
        return partial(Custom, reduce)
    if not isinstance(reduce, str):
        raise ConfigError(f"reduce= takes a name or a function, not {reduce!r:.60}")
    if reduce in _SIMPLE:
        return _SIMPLE[reduce]
    if match := _QUANTILE.fullmatch(reduce):
        return partial(Quantile, float(match[1]) / 100)
    if match := _EMA.fullmatch(reduce):
        return partial(Ema, float(match[1]))
    import difflib  # whoever makes no mistakes need not wait for it

    near = [_OTHER_WORDS.get(reduce, ""), *difflib.get_close_matches(reduce, _SIMPLE, n=1)]
    best = next(filter(None, near), None)
    hint = f"; did you mean {best!r}?" if best else "."
    raise ConfigError(
        f"there is no reduction {reduce!r}{hint} There are: {', '.join(_SIMPLE)}, quantiles such "
        "as 'p95', 'ema0.9', and functions of a list of values"
    )

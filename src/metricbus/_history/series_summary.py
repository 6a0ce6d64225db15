"""Series in a few numbers each, from rows that come one after the other.

Rows are held until there are many and then taken in together, column by column: that costs a tenth
of taking each value on its own. Memory is bounded by the names and by how many values are held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from metricbus._aggregate.exact_sum import ExactSum
from metricbus._common.records import Number, Scalars
from metricbus._history.sparkline import Curve

_HELD_AT_MOST = 1 << 20  # values; of ten thousand names that is still a hundred of each
_EXACT = 2**53  # integers up to here are exact as float64


class SeriesSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One name's values.

    `last` is the newest in the order of the journal. `min`, `max` and `mean` are over all values
    but the `nan` ones, and None where there are no others; the sum behind the mean is compensated.
    The steps are the least and the greatest.
    """

    name: str
    count: int
    nan: int
    last: Number
    min: Number | None
    max: Number | None
    mean: float | None
    first_step: int
    last_step: int
    curve: Curve


class AllSeries:
    """The series of a run that is being read."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}  # in the order in which they first came
        self._held: dict[tuple[str, ...], _Rows] = {}  # by their names
        self._count = 0  # of rows, ever
        self._values = 0  # that are held

    def add(self, record: Scalars) -> None:
        """One row."""
        names = tuple(record.values)
        rows = self._held.get(names)
        if rows is None:
            rows = self._held[names] = _Rows([], [], [])
            for name in names:
                if name not in self._series:
                    self._series[name] = _Series(name)
        rows.places.append(self._count)
        rows.steps.append(record.step)
        rows.values.extend(record.values.values())
        self._count += 1
        self._values += len(names)
        if self._values >= _HELD_AT_MOST:
            self._take_in()

    def summaries(self) -> dict[str, SeriesSummary]:
        """What is known of each by now."""
        self._take_in()
        return {name: series.summary() for name, series in self._series.items()}

    def _take_in(self) -> None:
        columns: dict[str, list[_Column]] = {}
        for names, rows in self._held.items():
            places, steps = np.array(rows.places), np.array(rows.steps, dtype=np.int64)
            for number, name in enumerate(names):
                values = rows.values[number :: len(names)]
                columns.setdefault(name, []).append(_Column(places, steps, values))
        for name, parts in columns.items():
            self._series[name].take_in(_joined(parts))
        self._held.clear()
        self._values = 0


class _Rows(NamedTuple):
    """Rows with the same names: where they stand among all rows, their steps, and their values one
    after the other (in rows of their own they would keep the garbage collector busy).
    """

    places: list[int]
    steps: list[int]
    values: list[Number]


class _Column(NamedTuple):
    """The values of one name, as Python's own numbers: so integers are exact."""

    places: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: Sequence[Number]


def _joined(parts: Sequence[_Column]) -> _Column:
    """The values of one name in the order in which they came."""
    if len(parts) == 1:
        return parts[0]
    places = np.concatenate([part.places for part in parts])
    order = np.argsort(places)
    steps = np.concatenate([part.steps for part in parts])
    values = [value for part in parts for value in part.values]
    return _Column(places[order], steps[order], [values[index] for index in order.tolist()])


class _Series:
    """One of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._curve = Curve()
        self._sum = ExactSum()
        self._count = self._nan = 0
        self._last: Number = math.nan
        self._min: Number = math.inf
        self._max: Number = -math.inf
        self._first_step, self._last_step = 1 << 63, -1

    def take_in(self, column: _Column) -> None:
        """Goes on with these values."""
        values = column.values
        array = np.array(values, dtype=np.float64)
        self._curve.add(array)
        self._count += len(values)
        self._last = values[-1]
        self._first_step = min(self._first_step, int(column.steps.min()))
        self._last_step = max(self._last_step, int(column.steps.max()))
        missing = np.isnan(array)
        if missing.any():
            self._nan += int(missing.sum())
            values = [value for value, nan in zip(values, missing, strict=True) if not nan]
            array = array[~missing]
        if values:
            self._take_extremes(values, array)
            self._add(values)

    def _take_extremes(self, values: Sequence[Number], array: NDArray[np.float64]) -> None:
        low, high = int(array.argmin()), int(array.argmax())
        least, greatest = values[low], values[high]
        if array[low] <= -_EXACT or array[high] >= _EXACT:  # by Python's own, exact comparison
            least, greatest = min(values), max(values)
        self._min, self._max = min(self._min, least), max(self._max, greatest)

    def _add(self, values: Sequence[Number]) -> None:
        try:
            self._sum.add(math.fsum(values))
        except (OverflowError, ValueError):  # beyond float64 on the way, or inf and -inf
            for value in values:
                self._sum.add(float(value))

    def summary(self) -> SeriesSummary:
        """What is known of it."""
        known = self._count - self._nan
        return SeriesSummary(
            name=self._name,
            count=self._count,
            nan=self._nan,
            last=self._last,
            min=self._min if known else None,
            max=self._max if known else None,
            mean=self._sum.value() / known if known else None,
            first_step=self._first_step,
            last_step=self._last_step,
            curve=self._curve,
        )

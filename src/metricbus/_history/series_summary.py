"""Summarizes series (count, extremes, mean, ...) from a stream of rows.

Rows are buffered and then processed together, column by column, which takes a tenth of the time of
processing each value separately. Memory is bounded by the number of names and the buffer size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from metricbus._aggregate.exact_sum import ExactSum
from metricbus._common.records import Number, ScalarRow
from metricbus._history.columns import MAX_EXACT_FLOAT, Floats, Ints
from metricbus._history.sparkline import SparklineData

_MAX_BUFFERED_VALUES = 1 << 20


class SeriesSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the values of one name.

    `last` is the last value in journal order. `nan` counts the NaN values; `min`, `max` and `mean`
    ignore them, and are None if there are no others. The mean is computed from a compensated sum.
    `first_step` and `last_step` are the smallest and the largest step.
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
    sparkline: SparklineData


class SeriesSummarizer:
    """Summarizes all series of a run. `add` the rows in journal order."""

    def __init__(self) -> None:
        self._accumulators: dict[str, _SeriesAccumulator] = {}  # in order of first values
        self._buffer: dict[tuple[str, ...], _RowBuffer] = {}  # by the names of the rows
        self._n_rows = 0
        self._n_buffered_values = 0

    def add(self, record: ScalarRow) -> None:
        """Add a row."""
        names = tuple(record.values)
        rows = self._buffer.get(names)
        if rows is None:
            rows = self._buffer[names] = _RowBuffer([], [], [])
            for name in names:
                if name not in self._accumulators:
                    self._accumulators[name] = _SeriesAccumulator(name)
        rows.row_numbers.append(self._n_rows)
        rows.steps.append(record.step)
        rows.values.extend(record.values.values())
        self._n_rows += 1
        self._n_buffered_values += len(names)
        if self._n_buffered_values >= _MAX_BUFFERED_VALUES:
            self._process_buffer()

    def summaries(self) -> dict[str, SeriesSummary]:
        """Return the summaries of the rows added so far, by name."""
        self._process_buffer()
        return {name: series.summary() for name, series in self._accumulators.items()}

    def _process_buffer(self) -> None:
        chunks: dict[str, list[_SeriesChunk]] = {}
        for names, rows in self._buffer.items():
            row_numbers, steps = np.array(rows.row_numbers), np.array(rows.steps, dtype=np.int64)
            for index, name in enumerate(names):
                values = rows.values[index :: len(names)]
                chunks.setdefault(name, []).append(_SeriesChunk(row_numbers, steps, values))
        for name, parts in chunks.items():
            self._accumulators[name].add(_merge_chunks(parts))
        self._buffer.clear()
        self._n_buffered_values = 0


class _RowBuffer(NamedTuple):
    """Rows with the same names.

    `values` is flat, row after row: a list per row would slow down the garbage collector.
    """

    row_numbers: list[int]
    steps: list[int]
    values: list[Number]


class _SeriesChunk(NamedTuple):
    """Values of one name, as Python numbers to keep integers exact."""

    row_numbers: Ints
    steps: Ints
    values: Sequence[Number]


def _merge_chunks(parts: Sequence[_SeriesChunk]) -> _SeriesChunk:
    """Merge chunks of one name, ordered by row number."""
    if len(parts) == 1:
        return parts[0]
    row_numbers = np.concatenate([part.row_numbers for part in parts])
    order = np.argsort(row_numbers)
    steps = np.concatenate([part.steps for part in parts])
    values = [value for part in parts for value in part.values]
    ordered_values = [values[index] for index in order.tolist()]
    return _SeriesChunk(row_numbers[order], steps[order], ordered_values)


class _SeriesAccumulator:
    def __init__(self, name: str) -> None:
        self._name = name
        self._sparkline = SparklineData()
        self._sum = ExactSum()
        self._count = self._nan = 0
        self._last: Number = math.nan
        self._min: Number = math.inf
        self._max: Number = -math.inf
        self._first_step, self._last_step = 1 << 63, -1

    def add(self, chunk: _SeriesChunk) -> None:
        values = chunk.values
        array = np.array(values, dtype=np.float64)
        self._sparkline.add(array)
        self._count += len(values)
        self._last = values[-1]
        self._first_step = min(self._first_step, int(chunk.steps.min()))
        self._last_step = max(self._last_step, int(chunk.steps.max()))
        is_nan = np.isnan(array)
        if is_nan.any():
            self._nan += int(is_nan.sum())
            values = [value for value, nan in zip(values, is_nan, strict=True) if not nan]
            array = array[~is_nan]
        if values:
            self._update_extremes(values, array)
            self._add_to_sum(values)

    def _update_extremes(self, values: Sequence[Number], array: Floats) -> None:
        low_index, high_index = int(array.argmin()), int(array.argmax())
        low, high = values[low_index], values[high_index]
        if array[low_index] <= -MAX_EXACT_FLOAT or array[high_index] >= MAX_EXACT_FLOAT:
            # Different integers can be equal as float64. Python compares them exactly.
            low, high = min(values), max(values)
        self._min, self._max = min(self._min, low), max(self._max, high)

    def _add_to_sum(self, values: Sequence[Number]) -> None:
        try:
            self._sum.add(math.fsum(values))
        except (OverflowError, ValueError):
            # An intermediate sum overflows, or the values include both infinities.
            for value in values:
                self._sum.add(float(value))

    def summary(self) -> SeriesSummary:
        n_numbers = self._count - self._nan
        return SeriesSummary(
            name=self._name,
            count=self._count,
            nan=self._nan,
            last=self._last,
            min=self._min if n_numbers else None,
            max=self._max if n_numbers else None,
            mean=self._sum.value() / n_numbers if n_numbers else None,
            first_step=self._first_step,
            last_step=self._last_step,
            sparkline=self._sparkline,
        )

"""Columnar storage for the scalar rows of a run.

Rows are buffered and packed one batch at a time. The rows of a batch that have the same names
become one block of numpy columns, so a value takes eight bytes, and the names of a row share its
step, epoch and time. A run of 10^7 values takes some hundred megabytes instead of gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metricbus._common.records import Number, ScalarRow, with_rank_prefix

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

MAX_EXACT_FLOAT = 2**53
"""Float64 represents every integer up to this magnitude exactly."""

_BATCH_ROWS = 8192


class Series(NamedTuple):
    """The values of one name in journal order, as numpy arrays of equal length.

    `time` is in nanoseconds since 1970-01-01 UTC. `value` is int64 if all values are integers, and
    float64 otherwise. If float64 would change one of the integers, `value` is an object array of
    Python numbers instead.
    """

    step: Ints
    epoch: Ints
    time: Ints
    value: NDArray[Any]

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        if not len(self):
            return "<Series of 0 values>"
        steps = f"{self.step.min()} to {self.step.max()}"
        return f"<Series of {len(self):,} values at steps {steps}, last {self.value[-1]:.6g}>"


class ColumnRow(NamedTuple):
    """One row of scalars, with names prefixed by rank.

    `row_number` counts the rows that were read, across segments.
    """

    row_number: int
    step: int
    epoch: int
    time: int
    values: dict[str, Number]


class _ColumnBlock(NamedTuple):
    """The rows of one batch that have the same names.

    A column is int64, float64, or, if it mixes integers and floats, an object array.
    """

    row_number: Ints
    step: Ints
    epoch: Ints
    time: Ints
    columns: dict[str, NDArray[Any]]

    def rows(self) -> Iterator[ColumnRow]:
        values = zip(*(column.tolist() for column in self.columns.values()), strict=True)
        positions = (column.tolist() for column in self[:4])
        for number, step, epoch, time, row in zip(*positions, values, strict=True):
            yield ColumnRow(number, step, epoch, time, dict(zip(self.columns, row, strict=True)))


class ScalarColumns:
    """All scalar rows of a run. `add` the rows in journal order, then call `pack`."""

    def __init__(self) -> None:
        self._buffer: dict[tuple[object, ...], list[tuple[int, ScalarRow]]] = {}
        self._n_buffered = 0
        self._batches: list[list[_ColumnBlock]] = []

    def __len__(self) -> int:
        return sum(len(block.row_number) for block in self._blocks())

    def add(self, row_number: int, row: ScalarRow) -> None:
        """Add a row. `row_number` must be greater than that of every earlier row."""
        if row.values:
            self._buffer.setdefault((row.rank, *row.values), []).append((row_number, row))
            self._n_buffered += 1
            if self._n_buffered >= _BATCH_ROWS:
                self.pack()

    def pack(self) -> None:
        """Pack the buffered rows into columns."""
        if self._buffer:
            self._batches.append([_pack_block(rows) for rows in self._buffer.values()])
            self._buffer, self._n_buffered = {}, 0

    def names(self) -> list[str]:
        """Return all names in the order of their first values."""
        return list(dict.fromkeys(name for block in self._blocks() for name in block.columns))

    def span(self) -> tuple[int, int] | None:
        """Return the earliest and the latest time; None if there are no rows."""
        spans = [(int(block.time.min()), int(block.time.max())) for block in self._blocks()]
        return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None

    def series(self, name: str) -> Series | None:
        """Return the values of one name; None if it has none."""
        blocks = [block for block in self._blocks() if name in block.columns]
        if not blocks:
            return None
        row_number, step, epoch, time = (
            np.concatenate([block[column] for block in blocks]) for column in range(4)
        )
        value = concat_values([block.columns[name] for block in blocks])
        if (np.diff(row_number) > 0).all():
            return Series(step, epoch, time, value)
        order = np.argsort(row_number, kind="stable")
        return Series(step[order], epoch[order], time[order], value[order])

    def row_numbers(self, name: str) -> Ints:
        """Return the ascending numbers of the rows that have a value of `name`."""
        blocks = [block.row_number for block in self._blocks() if name in block.columns]
        return np.sort(np.concatenate(blocks)) if blocks else np.zeros(0, dtype=np.int64)

    def rows(self) -> Iterator[ColumnRow]:
        """Yield all rows in journal order."""
        # All rows of a batch precede those of the next one, so merging within batches is enough.
        for batch in self._batches:
            yield from merge(*(block.rows() for block in batch), key=itemgetter(0))

    def _blocks(self) -> Iterator[_ColumnBlock]:
        return chain.from_iterable(self._batches)


def _pack_block(buffered: Sequence[tuple[int, ScalarRow]]) -> _ColumnBlock:
    """Pack rows that all have the same names in the same order."""
    rows = [row for _, row in buffered]
    names = list(with_rank_prefix(rows[0]).values)
    flat = list(chain.from_iterable(row.values.values() for row in rows))
    if set(map(type, flat)) == {float}:
        columns = list(np.array(flat, dtype=np.float64).reshape(len(rows), len(names)).T)
    else:
        columns = [value_array(flat[index :: len(names)]) for index in range(len(names))]
    return _ColumnBlock(
        np.array([row_number for row_number, _ in buffered], dtype=np.int64),
        np.array([row.step for row in rows], dtype=np.int64),
        np.array([row.epoch for row in rows], dtype=np.int64),
        np.array([row.time for row in rows], dtype=np.int64),
        dict(zip(names, columns, strict=True)),
    )


def value_array(values: Sequence[Number]) -> NDArray[Any]:
    """Return the values as int64 or float64 if they have one type, and as objects otherwise."""
    types = set(map(type, values))
    if types == {float}:
        return np.array(values, dtype=np.float64)
    if types == {int}:
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass  # metricbus does not write such integers, but another program may
    return np.array(values, dtype=object)


def concat_values(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate arrays of values; `Series` describes the resulting type."""
    if all(part.dtype == np.int64 for part in parts):
        return np.concatenate(parts)
    if any(_has_inexact_integer(part) for part in parts):
        return np.concatenate([part.astype(object) for part in parts])
    return np.concatenate([part.astype(np.float64) for part in parts])


def _has_inexact_integer(column: NDArray[Any]) -> bool:
    """Check whether float64 may be unable to represent one of the integers."""
    if column.dtype == np.int64:
        return bool((column > MAX_EXACT_FLOAT).any() or (column < -MAX_EXACT_FLOAT).any())
    return column.dtype == object and any(
        type(value) is int and abs(value) > MAX_EXACT_FLOAT for value in column
    )

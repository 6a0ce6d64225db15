"""Rows of numbers as columns: eight bytes a value, and what all names of a row share once.

Rows are gathered and packed a batch at a time: all rows of a batch with the same names become a
block of numpy columns. So a run of 10^7 values takes some hundred megabytes and not some gigabytes,
and its reading costs little beyond decoding it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metricbus._common.records import Number, Scalars, with_rank_prefix

Ints: TypeAlias = NDArray[np.int64]

_EXACT = 2**53  # integers up to here are exact as float64
_BATCH = 8192  # rows that are held as objects before they are packed


class Series(NamedTuple):
    """One name's values in the order of the journal, as columns of equal length.

    `time` is in nanoseconds since 1970-01-01 UTC. `value` is int64 if all values are integers and
    float64 otherwise; where that would change an integer, it holds Python's own numbers instead.
    """

    step: Ints
    epoch: Ints
    time: Ints
    value: NDArray[Any]

    def __len__(self) -> int:
        return len(self.step)


class PlainRow(NamedTuple):
    """A row without what only sinks ask for; `place` is where it stands in the whole journal."""

    place: int
    step: int
    epoch: int
    time: int
    values: dict[str, Number]


class _Block(NamedTuple):
    """The rows of one batch that have the same names."""

    place: Ints
    step: Ints
    epoch: Ints
    time: Ints
    columns: dict[str, NDArray[Any]]  # int64, float64, or Python's own numbers where they are mixed

    def rows(self) -> Iterator[PlainRow]:
        values = zip(*(column.tolist() for column in self.columns.values()), strict=True)
        where = (column.tolist() for column in (self.place, self.step, self.epoch, self.time))
        for place, step, epoch, time, row in zip(*where, values, strict=True):
            yield PlainRow(place, step, epoch, time, dict(zip(self.columns, row, strict=True)))

    def only(self, kept: NDArray[np.bool_]) -> _Block:
        columns = {name: column[kept] for name, column in self.columns.items()}
        return _Block(self.place[kept], self.step[kept], self.epoch[kept], self.time[kept], columns)


class Columns:
    """All rows of numbers of a run; `add` them in their order, then `pack`."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[object, ...], list[tuple[int, Scalars]]] = {}
        self._n_waiting = 0
        self._batches: list[list[_Block]] = []

    def __len__(self) -> int:
        return sum(len(block.place) for block in self._blocks())

    def add(self, place: int, row: Scalars) -> None:
        """Takes the row that stands at this place, which is above all before."""
        if row.values:
            self._waiting.setdefault((row.rank, *row.values), []).append((place, row))
            self._n_waiting += 1
            if self._n_waiting >= _BATCH:
                self.pack()

    def pack(self) -> None:
        """Turns what is held as objects into columns."""
        if self._waiting:
            self._batches.append([_packed(rows) for rows in self._waiting.values()])
            self._waiting, self._n_waiting = {}, 0

    def keep(self, wanted: Callable[[PlainRow], bool]) -> None:
        """Lets go of all rows that are not wanted."""
        batches = []
        for batch in self._batches:
            kept = [block.only(np.array([wanted(row) for row in block.rows()])) for block in batch]
            left = [block for block in kept if len(block.place)]
            batches.append(sorted(left, key=lambda block: int(block.place[0])))
        self._batches = batches

    def names(self) -> list[str]:
        """All names, in the order in which they first came."""
        return list(dict.fromkeys(name for block in self._blocks() for name in block.columns))

    def span(self) -> tuple[int, int] | None:
        """The least and the greatest time; None if there is no row."""
        spans = [(int(block.time.min()), int(block.time.max())) for block in self._blocks()]
        return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None

    def series(self, name: str) -> Series | None:
        """One name's values; None if it has none."""
        blocks = [block for block in self._blocks() if name in block.columns]
        if not blocks:
            return None
        place, step, epoch, time = (
            np.concatenate([block[column] for block in blocks]) for column in range(4)
        )
        value = joined([block.columns[name] for block in blocks])
        if (np.diff(place) > 0).all():
            return Series(step, epoch, time, value)
        order = np.argsort(place, kind="stable")
        return Series(step[order], epoch[order], time[order], value[order])

    def places(self, name: str) -> Ints:
        """Where the values of a name stand in the journal, in their order."""
        blocks = [block.place for block in self._blocks() if name in block.columns]
        return np.sort(np.concatenate(blocks)) if blocks else np.zeros(0, dtype=np.int64)

    def rows(self) -> Iterator[PlainRow]:
        """All rows in their order; rows of different batches never stand among each other."""
        for batch in self._batches:
            yield from merge(*(block.rows() for block in batch), key=itemgetter(0))

    def _blocks(self) -> Iterator[_Block]:
        return chain.from_iterable(self._batches)


def _packed(waiting: Sequence[tuple[int, Scalars]]) -> _Block:
    """The columns of rows that all have the same names, in the same order."""
    rows = [row for _, row in waiting]
    names = list(with_rank_prefix(rows[0]).values)
    flat = list(chain.from_iterable(row.values.values() for row in rows))
    if set(map(type, flat)) == {float}:
        columns = list(np.array(flat, dtype=np.float64).reshape(len(rows), len(names)).T)
    else:
        columns = [_column(flat[index :: len(names)]) for index in range(len(names))]
    return _Block(
        np.array([place for place, _ in waiting], dtype=np.int64),
        np.array([row.step for row in rows], dtype=np.int64),
        np.array([row.epoch for row in rows], dtype=np.int64),
        np.array([row.time for row in rows], dtype=np.int64),
        dict(zip(names, columns, strict=True)),
    )


def _column(values: Sequence[Number]) -> NDArray[Any]:
    """The values as they are: int64, float64, or, where both are among them, Python's own."""
    kinds = set(map(type, values))
    if kinds == {float}:
        return np.array(values, dtype=np.float64)
    if kinds == {int}:
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:  # of a journal that somebody else wrote
            pass
    return np.array(values, dtype=object)


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The parts as one column, by the rule of `Series`."""
    if all(part.dtype == np.int64 for part in parts):
        return np.concatenate(parts)
    if any(_has_large_integer(part) for part in parts):
        return np.concatenate([part.astype(object) for part in parts])
    return np.concatenate([part.astype(np.float64) for part in parts])


def _has_large_integer(column: NDArray[Any]) -> bool:
    if column.dtype == np.int64:
        return bool((column > _EXACT).any() or (column < -_EXACT).any())
    return column.dtype == object and any(
        type(value) is int and abs(value) > _EXACT for value in column
    )

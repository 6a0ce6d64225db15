"""A history's numbers as DataFrames of pandas or polars."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricbus._common.optional_imports import import_optional
from metricbus._common.records import Number
from metricbus._history.columns import Columns, Ints, joined
from metricbus.errors import MissingPackageError

_KINDS = ("pandas", "polars")


def long_frame(columns: Columns, kind: str | None) -> Any:
    """One line a value: step, epoch, time, name, value."""
    kind = _chosen(kind)
    table = _Long(columns)
    return table.to_pandas() if kind == "pandas" else table.to_polars()


def wide_frame(
    names: Sequence[str], rows: Sequence[Sequence[Number | None]], kind: str | None
) -> Any:
    """One line a step and epoch, one column a name; what is absent is null."""
    kind = _chosen(kind)
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    make = _pandas_column if kind == "pandas" else _polars_column
    data = {name: make(column) for name, column in zip(names, columns, strict=True)}
    return _library(kind).DataFrame(data)


def _chosen(kind: str | None) -> str:
    if kind is None:
        installed = [known for known in _KINDS if find_spec(known) is not None]
        if not installed:
            raise MissingPackageError("history.frame() needs pandas or polars: pip install pandas")
        return installed[0]
    if kind not in _KINDS:
        raise ValueError(f'kind= must be "pandas" or "polars", not {kind!r}')
    _library(kind)
    return kind


def _library(kind: str) -> Any:
    return import_optional(kind, "history.frame()", kind)


class _Long:
    """All values as columns, in the order of the journal."""

    def __init__(self, columns: Columns) -> None:
        self.names = columns.names()
        series = [columns.series(name) for name in self.names]
        parts = [part for part in series if part is not None]
        places = [columns.places(name) for name in self.names]
        order = np.argsort(_chained(places), kind="stable")
        self.step, self.epoch, self.time = (
            _chained([part[index] for part in parts])[order] for index in range(3)
        )
        self.value = joined([part.value for part in parts])[order] if parts else np.zeros(0)
        self.code = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]

    def to_pandas(self) -> Any:
        pandas = _library("pandas")
        time = pandas.to_datetime(self.time, unit="ns", utc=True)
        name = np.array(self.names, dtype=object)[self.code]
        data = {"step": self.step, "epoch": self.epoch, "time": time, "name": name}
        return pandas.DataFrame(data | {"value": self.value})

    def to_polars(self) -> Any:
        polars = _library("polars")
        time = polars.Series(self.time).cast(polars.Datetime("ns", "UTC"))
        name = polars.Series(self.names, dtype=polars.String).gather(self.code)
        value = self.value
        if value.dtype == object:
            value = polars.Series(value.tolist(), dtype=polars.Object)
        data = {"step": self.step, "epoch": self.epoch, "time": time, "name": name}
        return polars.DataFrame(data | {"value": value})


def _chained(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _pandas_column(values: list[Number | None]) -> Any:
    """Whole numbers with gaps become Int64, which knows them; floats have NaN for a gap."""
    pandas = _library("pandas")
    column = _present(values)
    if column.dtype == np.int64:
        return pandas.array(values, dtype="int64" if None not in values else "Int64")
    if column.dtype == object:
        return pandas.Series(values, dtype=object)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _polars_column(values: list[Number | None]) -> Any:
    polars = _library("polars")
    kinds = {np.dtype(np.int64): polars.Int64, np.dtype(np.float64): polars.Float64}
    return polars.Series(
        values, dtype=kinds.get(_present(values).dtype, polars.Object), strict=False
    )


def _present(values: list[Number | None]) -> NDArray[Any]:
    """What there is, by the rule of `Series`: int64, float64 or Python's own numbers."""
    numbers = [value for value in values if value is not None]
    ints = np.array([value for value in numbers if type(value) is int], dtype=object)
    if numbers and len(ints) == len(numbers):
        return np.array(numbers, dtype=np.int64)
    floats = np.array([value for value in numbers if type(value) is float])
    return joined([ints, floats])

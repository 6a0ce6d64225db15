"""Converts the scalars of a history to pandas and polars DataFrames."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from metricbus._common.optional_imports import import_optional
from metricbus._common.records import Number
from metricbus._history.columns import Ints, ScalarColumns, concat_values, value_array
from metricbus.errors import MissingPackageError

_KINDS = ("pandas", "polars")


def long_frame(columns: ScalarColumns, kind: str | None) -> Any:
    """Return a frame with one line per value: step, epoch, time, name, value."""
    kind = _resolve_kind(kind)
    table = _LongTable(columns)
    return table.to_pandas() if kind == "pandas" else table.to_polars()


def wide_frame(
    names: Sequence[str], rows: Sequence[Sequence[Number | None]], kind: str | None
) -> Any:
    """Return a frame of `rows` with the columns `names`; None becomes null."""
    kind = _resolve_kind(kind)
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    make_column = _pandas_column if kind == "pandas" else _polars_column
    data = {name: make_column(column) for name, column in zip(names, columns, strict=True)}
    return _import_library(kind).DataFrame(data)


def _resolve_kind(kind: str | None) -> str:
    if kind is None:
        installed = [library for library in _KINDS if find_spec(library) is not None]
        if not installed:
            raise MissingPackageError("history.frame() needs pandas or polars: pip install pandas")
        return installed[0]
    if kind not in _KINDS:
        raise ValueError(f'kind= must be "pandas" or "polars", not {kind!r}')
    _import_library(kind)
    return kind


def _import_library(kind: str) -> Any:
    return import_optional(kind, "history.frame()", kind)


class _LongTable:
    """All values of a run as columns in journal order."""

    def __init__(self, columns: ScalarColumns) -> None:
        self.names = columns.names()
        all_series = [columns.series(name) for name in self.names]
        parts = [series for series in all_series if series is not None]
        row_numbers = [columns.row_numbers(name) for name in self.names]
        order = np.argsort(_concat_ints(row_numbers), kind="stable")
        self.step, self.epoch, self.time = (
            _concat_ints([part[index] for part in parts])[order] for index in range(3)
        )
        values = [part.value for part in parts]
        self.value = concat_values(values)[order] if parts else np.zeros(0)
        self.name_index = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]

    def to_pandas(self) -> Any:
        pandas = _import_library("pandas")
        time = pandas.to_datetime(self.time, unit="ns", utc=True)
        name = np.array(self.names, dtype=object)[self.name_index]
        data = {"step": self.step, "epoch": self.epoch, "time": time, "name": name}
        return pandas.DataFrame(data | {"value": self.value})

    def to_polars(self) -> Any:
        polars = _import_library("polars")
        time = polars.Series(self.time).cast(polars.Datetime("ns", "UTC"))
        name = polars.Series(self.names, dtype=polars.String).gather(self.name_index)
        value = self.value
        if value.dtype == object:
            value = polars.Series(value.tolist(), dtype=polars.Object)
        data = {"step": self.step, "epoch": self.epoch, "time": time, "name": name}
        return polars.DataFrame(data | {"value": value})


def _concat_ints(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _pandas_column(values: list[Number | None]) -> Any:
    """Return integers with gaps as nullable Int64, and floats with NaN for gaps."""
    pandas = _import_library("pandas")
    dtype = _non_null_dtype(values)
    if dtype == np.int64:
        return pandas.array(values, dtype="int64" if None not in values else "Int64")
    if dtype.hasobject:
        return pandas.Series(values, dtype=object)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _polars_column(values: list[Number | None]) -> Any:
    polars = _import_library("polars")
    dtypes = {np.dtype(np.int64): polars.Int64, np.dtype(np.float64): polars.Float64}
    dtype = dtypes.get(_non_null_dtype(values), polars.Object)
    return polars.Series(values, dtype=dtype, strict=False)


def _non_null_dtype(values: list[Number | None]) -> np.dtype[Any]:
    """Return the type that a `Series` of the values without None would have."""
    return concat_values([value_array([value for value in values if value is not None])]).dtype

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
    library = _import_library(kind)
    names = columns.names()
    parts = [series for series in map(columns.series, names) if series is not None]
    row_numbers = [columns.row_numbers(name) for name in names]
    order = np.argsort(_concat_ints(row_numbers), kind="stable")
    step, epoch, time = (_concat_ints([part[index] for part in parts])[order] for index in range(3))
    value: Any = concat_values([part.value for part in parts])[order] if parts else np.zeros(0)
    name_index = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
    data = {"step": step, "epoch": epoch}
    if library.__name__ == "pandas":
        data["time"] = library.to_datetime(time, unit="ns", utc=True)
        data["name"] = np.array(names, dtype=object)[name_index]
    else:
        data["time"] = library.Series(time).cast(library.Datetime("ns", "UTC"))
        data["name"] = library.Series(names, dtype=library.String).gather(name_index)
        if value.dtype == object:
            value = library.Series(value.tolist(), dtype=library.Object)
    return library.DataFrame(data | {"value": value})


def wide_frame(
    names: Sequence[str], rows: Sequence[Sequence[Number | None]], kind: str | None
) -> Any:
    """Return a frame of `rows` with the columns `names`; None becomes null."""
    library = _import_library(kind)
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    to_column = _pandas_column if library.__name__ == "pandas" else _polars_column
    data = {name: to_column(library, values) for name, values in zip(names, columns, strict=True)}
    return library.DataFrame(data)


def _import_library(kind: str | None) -> Any:
    if kind is None:
        installed = [library for library in _KINDS if find_spec(library) is not None]
        if not installed:
            raise MissingPackageError("history.frame() needs pandas or polars: pip install pandas")
        kind = installed[0]
    elif kind not in _KINDS:
        raise ValueError(f'kind= must be "pandas" or "polars", not {kind!r}')
    return import_optional(kind, "history.frame()", kind)


def _concat_ints(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _pandas_column(pandas: Any, values: list[Number | None]) -> Any:
    """Return integers with gaps as nullable Int64, and floats with NaN for gaps."""
    dtype = _non_null_dtype(values)
    if dtype == np.int64:
        return pandas.array(values, dtype="int64" if None not in values else "Int64")
    if dtype.hasobject:
        return pandas.Series(values, dtype=object)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _polars_column(polars: Any, values: list[Number | None]) -> Any:
    dtypes = {np.dtype(np.int64): polars.Int64, np.dtype(np.float64): polars.Float64}
    dtype = dtypes.get(_non_null_dtype(values), polars.Object)
    return polars.Series(values, dtype=dtype, strict=False)


def _non_null_dtype(values: list[Number | None]) -> np.dtype[Any]:
    """Return the type that a `Series` of the values without None would have."""
    return concat_values([value_array([value for value in values if value is not None])]).dtype

"""Exports the scalars of a run to other formats, exactly and in bounded memory.

========  =========================================================================================
csv       One line per value: `step`, `epoch`, `time` (seconds since 1970-01-01 UTC with nine
          decimals), `name`, `value`.
csv-wide  One line per step and epoch, one column per name; missing values are empty cells. If the
          steps are not in order, all values are held in memory.
json      An array with one object per value. `time` is in nanoseconds. NaN and the infinities,
          which JSON cannot represent, are the strings "NaN", "Infinity" and "-Infinity".
parquet   One row per value. `time` is a timestamp, `name` a dictionary, `value` a float64.
          `integer` has the exact value of an integer; float64 rounds integers beyond 2**53.
========  =========================================================================================

Media are files already and are not exported. Partial aggregates of a process that died are not
exported either, because they are not values yet.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import islice
from typing import IO, Any

import msgspec

from metricbus._common.optional_imports import check_installed
from metricbus._common.records import ScalarRow, number_to_json, with_rank_prefix
from metricbus._history.name_filter import NameFilter
from metricbus._history.wide_table import merge_rows, step_and_epoch
from metricbus._journal.rewind import Rewinds, find_rewinds
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import JournalReader, OnProgress
from metricbus.sinks.csv.cells import quoted, safe_cell, seconds

COLUMNS = ("step", "epoch", "time", "name", "value")
_BATCH_VALUES = 1 << 16


class ExportFormat(StrEnum):
    """An export format."""

    CSV = "csv"
    CSV_WIDE = "csv-wide"
    PARQUET = "parquet"
    JSON = "json"


class ScalarSource:
    """The scalar rows of a run, reduced to matching names. Can be iterated several times.

    Rows superseded by a rewind are left out unless `superseded` is true. Of a live run, only the
    rows that existed when the object was created are read. `values` and `damaged` count the values,
    and the lines that could not be decoded, of the latest iteration.
    """

    def __init__(
        self,
        folder: RunFolder,
        name_filter: NameFilter,
        *,
        superseded: bool = False,
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        """Raise `JournalError` if the folder is not a run folder."""
        self._on_progress = on_progress
        self.run = folder.load()
        self.name_filter = name_filter
        self.values = self.damaged = 0
        self._journal = folder.journal
        self._rewinds = Rewinds(()) if superseded else find_rewinds(folder.journal)
        self._lengths = JournalReader(folder.journal).lengths()

    def __iter__(self) -> Iterator[ScalarRow]:
        """Yield the rows in journal order."""
        reader = JournalReader(self._journal)
        self.values = 0
        for row in reader.rows((ScalarRow,), self.name_filter.matches, self._on_progress):
            record = row.record
            if not isinstance(record, ScalarRow) or row.end > self._lengths.get(row.segment, 0):
                continue
            if self._rewinds and self._rewinds.supersedes(row.segment, row.line, record):
                continue
            matching = self.name_filter.filter_record(record)
            if matching is not None:
                self.values += len(matching.values)
                yield with_rank_prefix(matching)
        self.damaged = reader.damaged


def write_export(source: ScalarSource, format: ExportFormat, file: IO[bytes]) -> None:
    """Write the rows of `source` to `file`.

    Raises `MissingPackageError` if a package that the format needs is not installed.
    """
    writers: dict[ExportFormat, Callable[[ScalarSource, IO[bytes]], None]] = {
        ExportFormat.CSV: _write_csv,
        ExportFormat.CSV_WIDE: _write_wide_csv,
        ExportFormat.JSON: _write_json,
        ExportFormat.PARQUET: _write_parquet,
    }
    writers[format](source, file)


def _write_csv(source: ScalarSource, file: IO[bytes]) -> None:
    name_cells = _NameCells()
    file.write(f"{','.join(COLUMNS)}\r\n".encode())
    for row in source:
        start = f"{row.step},{row.epoch},{seconds(row.time)},"
        text = [f"{start}{name_cells[name]},{value!r}\r\n" for name, value in row.values.items()]
        file.write("".join(text).encode())


class _NameCells(dict[str, str]):
    """A cache of names as quoted CSV cells."""

    def __missing__(self, name: str) -> str:
        cell = self[name] = quoted(name)
        return cell


def _write_wide_csv(source: ScalarSource, file: IO[bytes]) -> None:
    """Write one line per step and epoch. A first pass collects the names for the header."""
    names: dict[str, None] = {}
    is_sorted, previous = True, (-1, -1)
    for row in source:
        names.update(dict.fromkeys(row.values))
        is_sorted &= previous <= step_and_epoch(row)
        previous = step_and_epoch(row)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(text)
        writer.writerow(["step", "epoch", *map(safe_cell, names)])
        rows = source if is_sorted else sorted(source, key=step_and_epoch)
        for key, line in merge_rows(rows):
            writer.writerow([*key, *map(line.get, names)])
    finally:
        text.detach()


def _write_json(source: ScalarSource, file: IO[bytes]) -> None:
    encode = msgspec.json.Encoder().encode
    separator = b"[\n"
    for row in source:
        for name, value in row.values.items():
            cells = row.step, row.epoch, row.time, name, number_to_json(value)
            file.write(separator + encode(dict(zip(COLUMNS, cells, strict=True))))
            separator = b",\n"
    file.write(b"\n]\n" if separator == b",\n" else b"[]\n")


def check_parquet() -> None:
    """Raise `MissingPackageError` if pyarrow is not installed."""
    check_installed("pyarrow", "Parquet export", "pyarrow")


def _write_parquet(source: ScalarSource, file: IO[bytes]) -> None:
    check_parquet()
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = (
        pa.int64(),
        pa.int64(),
        pa.timestamp("ns", tz="UTC"),
        pa.dictionary(pa.int32(), pa.string()),
        pa.float64(),
        pa.int64(),
    )
    schema = pa.schema(list(zip((*COLUMNS, "integer"), types, strict=True)))
    rows = (
        (row.step, row.epoch, row.time, name, float(value), value if type(value) is int else None)
        for row in source
        for name, value in row.values.items()
    )
    with pq.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, _BATCH_VALUES)):
            columns: list[Any] = [
                pa.array(column, type=pa.string()).dictionary_encode()
                if name == "name"
                else pa.array(column, type=type)
                for column, name, type in zip(
                    zip(*batch, strict=True), schema.names, types, strict=True
                )
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))

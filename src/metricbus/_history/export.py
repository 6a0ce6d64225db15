"""A run's numbers in files of other formats, exactly, without having them all in memory.

========  =========================================================================================
csv       a line a value: `step`, `epoch`, `time` (seconds since 1970 UTC, nine decimals), `name`,
          `value`
csv-wide  a line a step and epoch, a column a name, empty cells where there is nothing
json      an array with an object a value; `time` is in nanoseconds, and NaN and the infinities,
          which JSON does not know, are the strings "NaN", "Infinity" and "-Infinity"
parquet   a row a value; `time` is a timestamp, `name` a dictionary, `value` a float64, and
          `integer` what was logged as an integer, exactly (float64 rounds those beyond 2**53)
========  =========================================================================================

Media are files already; what was open in a reduction when its process died is no value yet. Both
are left out.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import msgspec

from metricbus._common.records import Number, Scalars, with_rank_prefix
from metricbus._history.name_filter import NameFilter
from metricbus._journal.rewind import Rewinds
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import SUFFIX, JournalReader, OnProgress
from metricbus.errors import MissingPackageError
from metricbus.sinks.csv.cells import lines, safe_cell, seconds

Key: TypeAlias = tuple[int, int]  # step and epoch

COLUMNS = ("step", "epoch", "time", "name", "value")
_BATCH = 1 << 16  # values
_BLOCK = 1 << 20  # bytes
_ROWS_A_REPORT = 5_000


class ExportFormat(StrEnum):
    """What may be written."""

    CSV = "csv"
    CSV_WIDE = "csv-wide"
    PARQUET = "parquet"
    JSON = "json"


class ScalarSource:
    """The rows of numbers of a run, of the wanted names, as often as they are asked for.

    What rewinds superseded is left out, unless `superseded` asks for it. `values` and `damaged`
    count the values, and the lines that could not be read, of the last time.
    """

    def __init__(
        self,
        folder: RunFolder,
        wanted: NameFilter,
        *,
        superseded: bool = False,
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        """Raises `JournalError` for what is no run."""
        self._on_progress = on_progress
        self.run = folder.load()
        self.name_filter = wanted
        self.values = self.damaged = 0
        self._journal = folder.journal
        asks = not superseded and _has_rewinds(folder.journal)
        self._rewinds = Rewinds(JournalReader(folder.journal).read() if asks else ())
        self._sizes = {path.stem: path.stat().st_size for path in folder.journal.glob(f"*{SUFFIX}")}

    def __iter__(self) -> Iterator[Scalars]:
        """The rows in the order of the journal; of a live run, as far as it was at first."""
        reader = JournalReader(self._journal)
        self.values = 0
        total = sum(self._sizes.values())
        for count, row in enumerate(reader.read()):
            self.damaged = reader.damaged
            if count % _ROWS_A_REPORT == 0:
                self._on_progress(sum(at.offset for at in reader.positions.values()), total)
            record = row.record
            if not isinstance(record, Scalars) or row.end > self._sizes.get(row.segment, 0):
                continue
            if self._rewinds and self._rewinds.supersede(row.segment, row.line, record):
                continue
            kept = self.name_filter.part_of(with_rank_prefix(record))
            if kept is not None:
                self.values += len(kept.values)
                yield kept


def _has_rewinds(journal: Path) -> bool:
    """Whether the word is in it: to look for bytes is far quicker than to decode all lines."""
    return any(_has(path, b'"rewind"') for path in journal.glob(f"*{SUFFIX}"))


def _has(path: Path, word: bytes) -> bool:
    rest = b""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            if word in rest + block:
                return True
            rest = block[-len(word) :]
    return False


def write(numbers: ScalarSource, format: ExportFormat, file: IO[bytes]) -> None:
    """Writes the numbers into the file.

    Raises `MissingPackageError` if what the format needs is not installed.
    """
    writers: dict[ExportFormat, Callable[[ScalarSource, IO[bytes]], None]] = {
        ExportFormat.CSV: _write_csv,
        ExportFormat.CSV_WIDE: _write_wide,
        ExportFormat.JSON: _write_json,
        ExportFormat.PARQUET: _write_parquet,
    }
    writers[format](numbers, file)


def _write_csv(numbers: ScalarSource, file: IO[bytes]) -> None:
    cells = _Cells()
    file.write(f"{','.join(COLUMNS)}\r\n".encode())
    for row in numbers:
        start = f"{row.step},{row.epoch},{seconds(row.time)},"
        found = [f"{start}{cells[name]},{value!r}\r\n" for name, value in row.values.items()]
        file.write("".join(found).encode())


class _Cells(dict[str, str]):
    """Names as cells, each quoted once."""

    def __missing__(self, name: str) -> str:
        cell = self[name] = lines([[safe_cell(name)]]).decode().removesuffix("\r\n")
        return cell


def _write_wide(numbers: ScalarSource, file: IO[bytes]) -> None:
    """One line after the other where steps come in order; else all of them are gathered first."""
    names: dict[str, None] = {}
    in_order, last = True, (-1, -1)
    for row in numbers:
        names.update(dict.fromkeys(row.values))
        key = row.step, row.epoch
        in_order &= last <= key
        last = key
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(text)
        writer.writerow(["step", "epoch", *map(safe_cell, names)])
        for key, line in _joined(numbers) if in_order else _sorted(numbers):
            writer.writerow([*key, *map(line.get, names)])
    finally:
        text.detach()


def _joined(rows: Iterable[Scalars]) -> Iterator[tuple[Key, dict[str, Number]]]:
    """What follows each other at one step and epoch as one line; a name that comes again begins
    another.
    """
    at: Key | None = None
    line: dict[str, Number] = {}
    for row in rows:
        key = row.step, row.epoch
        if at is not None and (key != at or not line.keys().isdisjoint(row.values)):
            yield at, line
            line = {}
        at = key
        line.update(row.values)
    if at is not None:
        yield at, line


def _sorted(rows: Iterable[Scalars]) -> Iterator[tuple[Key, dict[str, Number]]]:
    gathered: dict[Key, list[dict[str, Number]]] = {}
    for row in rows:
        there = gathered.setdefault((row.step, row.epoch), [{}])
        if not there[-1].keys().isdisjoint(row.values):
            there.append({})
        there[-1].update(row.values)
    for key in sorted(gathered):
        for line in gathered[key]:
            yield key, line


def _write_json(numbers: ScalarSource, file: IO[bytes]) -> None:
    encode = msgspec.json.Encoder().encode
    before = b"[\n"
    for row in numbers:
        for name, value in row.values.items():
            cells = row.step, row.epoch, row.time, name, _spelled(value)
            file.write(before + encode(dict(zip(COLUMNS, cells, strict=True))))
            before = b",\n"
    file.write(b"\n]\n" if before == b",\n" else b"[]\n")


def _spelled(value: Number) -> Number | str:
    if value - value == 0:
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def check_parquet() -> None:
    """`MissingPackageError` where Parquet cannot be written."""
    if find_spec("pyarrow") is None:
        raise MissingPackageError(
            "Parquet is written by pyarrow, which is not installed: pip install pyarrow"
        )


def _write_parquet(numbers: ScalarSource, file: IO[bytes]) -> None:
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
    with pq.ParquetWriter(file, schema) as writer:
        values = _values(numbers)
        while batch := list(islice(values, _BATCH)):
            columns: list[Any] = [
                pa.array(column, type=pa.string()).dictionary_encode()
                if name == "name"
                else pa.array(column, type=type)
                for column, name, type in zip(
                    zip(*batch, strict=True), schema.names, types, strict=True
                )
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _values(
    rows: Iterable[Scalars],
) -> Iterator[tuple[int, int, int, str, float, int | None]]:
    for row in rows:
        for name, value in row.values.items():
            exact = value if type(value) is int else None
            yield row.step, row.epoch, row.time, name, float(value), exact

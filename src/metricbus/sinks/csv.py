"""A tidy CSV file: one line a value, whatever names come, in `metrics.csv`.

Columns: `step`, `epoch`, `time` (seconds since 1970-01-01 UTC with nine decimals), `name`, `value`
and `kind`, which is `scalar` for a value and `partial` for what was in a reduction when its process
died. Other kinds of lines may come between; readers take the kinds they know. Appending costs the
same however long the file is. Quoting follows RFC 4180, lines end in CR LF, and floats are written
so that they read back exactly.

A name that a spreadsheet would run as a formula gets an apostrophe in front, and so does one that
begins with an apostrophe, so that taking one leading apostrophe away gives every name back.
Numbers are never touched: -0.5 stays a number.

Beside it, `config.json` has the run's hyperparameters, `run.json` its name and how it ended.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from metricbus.files import AppendFile, replace_file
from metricbus.records import Rewind, Scalars, Status
from metricbus.run import Run
from metricbus.sinks.base import FileSink

_log = logging.getLogger("metricbus.sinks.csv")

COLUMNS = ("step", "epoch", "time", "name", "value", "kind")

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


class CsvSink(FileSink):
    """Appends to `metrics.csv`; `csv:FOLDER` puts it into `FOLDER/<run's id>`."""

    kinds = (Scalars, Rewind)

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Cuts off what a killed delivery wrote beyond the saved length, then goes on there."""
        self._folder = self.folder_for(run, folder, "csv")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._write_json("config.json", run.config)
        self._write_json("run.json", msgspec.structs.replace(run, config={}))
        self._cells: dict[str, str] = {}
        self._file = AppendFile(self._folder / "metrics.csv", shared=True)
        try:
            self._go_on_from(state.get("length", 0))
        except BaseException:
            self._file.close()
            raise

    def _go_on_from(self, length: int) -> None:
        if self._file.length < length:
            _log.warning("%s has been cut or replaced; going on at its end", self._file.path)
        self._file.cut(min(length, self._file.length))
        if not self._file.length:
            self._file.append(_line(COLUMNS).encode())

    def write(self, records: Sequence[Scalars | Rewind]) -> None:
        """One line a value. Only names can need quoting, and each is quoted once."""
        cells = self._cells
        lines: list[str] = []
        for record in records:
            start = f"{record.step},{record.epoch},{_seconds(record.time)},"
            if isinstance(record, Rewind):
                lines.append(f"{start},,rewind\r\n")
                continue
            kind = "partial" if record.partial else "scalar"
            for name, value in record.values.items():
                cell = cells.get(name)
                if cell is None:
                    cell = cells[name] = _line([safe_cell(name)]).removesuffix("\r\n")
                lines.append(f"{start}{cell},{value!r},{kind}\r\n")
        self._file.append("".join(lines).encode())

    def flush(self) -> Mapping[str, Any]:
        """The length that counts."""
        return {"length": self._file.length}

    def close(self, status: Status) -> None:
        """Lets go of the file, and writes down how the run ended."""
        self._file.close()
        end = None if status == "running" else self._run.ended or time.time_ns()
        ended = msgspec.structs.replace(self._run, config={}, status=status, ended=end)
        self._write_json("run.json", ended)

    def _write_json(self, name: str, what: object) -> None:
        text = msgspec.json.format(msgspec.json.encode(what))
        replace_file(self._folder / name, text + b"\n")

    @property
    def where(self) -> str:
        """The file."""
        return str(self._folder / "metrics.csv")


def safe_cell(text: str) -> str:
    """The text as a cell that a spreadsheet does not run."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()

"""Tidy CSV files: one line a value or medium, whatever names come, in `metrics.csv`.

Columns: `step`, `epoch`, `time` (seconds since 1970-01-01 UTC with nine decimals), `name`, `value`
and `kind`, which is `scalar` for a value and `partial` for what was in a reduction when its process
died. A line of the kind `rewind` has no name: of the lines above it, those with a greater step are
superseded. Of a medium, the kind is what it is (`histogram`, `image`, `table`, `text`, `audio`,
`video`, `chart`, `file`) and the value the path of its file; lines of the kinds `caption` and
`chart_data` go with the one above them. `metricbus.sinks.csv.media` says what these files are.
Other kinds of lines may come between; readers take the kinds they know. Appending costs the same
however long the file is. Quoting follows RFC 4180, lines end in CR LF, and floats are written
so that they read back exactly.

A name that a spreadsheet would run as a formula gets an apostrophe in front, and so does one that
begins with an apostrophe, so that taking one leading apostrophe away gives every name back.
Numbers are never touched: -0.5 stays a number.

Beside it, `config.json` has the run's hyperparameters, `run.json` its name and how it ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common.files import replace_file
from metricbus._common.media_records import MEDIA, MediumRecord
from metricbus._common.records import Rewind, Scalars, Status
from metricbus._journal.run import Run
from metricbus.errors import Lost
from metricbus.sinks.base import FileSink
from metricbus.sinks.csv.cells import lines, safe_cell, seconds
from metricbus.sinks.csv.files import GrowingFiles
from metricbus.sinks.csv.media import HISTOGRAMS, TABLES, CsvMedia

__all__ = ["COLUMNS", "CsvSink", "safe_cell"]

COLUMNS = ("step", "epoch", "time", "name", "value", "kind")

_METRICS = "metrics.csv"
_IN_STATE = {"length": _METRICS, "histograms": HISTOGRAMS, "tables": TABLES}


class CsvSink(FileSink):
    """Appends to `metrics.csv`; `csv:FOLDER` puts it into `FOLDER/<run's id>`."""

    kinds = (Scalars, Rewind, *MEDIA)

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Cuts off what a killed delivery wrote beyond the saved lengths, then goes on there."""
        self._folder = self.folder_for(run, folder, "csv")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._write_json("config.json", run.config)
        self._write_json("run.json", _without_config(run))
        self._cells: dict[str, str] = {}
        lengths = {path: state[key] for key, path in _IN_STATE.items() if key in state}
        self._files = GrowingFiles(self._folder, lengths)
        copies = bool(self.location)
        self._media = CsvMedia(
            folder, self._folder, self._files, copies=copies, tell=self.log_fallback
        )
        try:
            if not self._files.file(_METRICS).length:
                self._files.append(_METRICS, b"", lines([COLUMNS]))
            self._media.go_on()
            self._files.keep()
        except BaseException:
            self._files.close()
            raise

    def write(self, records: Sequence[Any]) -> None:
        """One line a value. Only names can need quoting, and each is quoted once."""
        try:
            written = "".join(self._lines(records))
            self._media.finish()
            self._files.append(_METRICS, written.encode(), b"")
        except Lost:
            raise
        except BaseException:
            self._media.forget()
            self._files.undo()
            raise
        self._files.keep()

    def _lines(self, records: Sequence[Any]) -> list[str]:
        cells = self._cells
        found: list[str] = []
        for record in records:
            start = f"{record.step},{record.epoch},{seconds(record.time)},"
            if type(record) is Scalars:
                kind = "partial" if record.partial else "scalar"
                for name, value in record.values.items():
                    cell = cells.get(name)
                    if cell is None:
                        cell = cells[name] = _quoted(name)
                    found.append(f"{start}{cell},{value!r},{kind}\r\n")
            elif isinstance(record, Rewind):
                found.append(f"{start},,rewind\r\n")
            elif isinstance(record, MediumRecord):
                cell = _quoted(record.name)
                for text, kind in self._media.add(record):
                    found.append(f"{start}{cell},{_quoted(text)},{kind}\r\n")
        return found

    def flush(self) -> Mapping[str, Any]:
        """The lengths that count."""
        lengths = self._files.lengths
        return {key: lengths[path] for key, path in _IN_STATE.items() if path in lengths}

    def close(self, status: Status) -> None:
        """Lets go of the file, and writes down how the run ended."""
        self._files.close()
        end = None if status == "running" else self._run.ended or time.time_ns()
        ended = msgspec.structs.replace(self._run, status=status, ended=end)
        self._write_json("run.json", _without_config(ended))

    def _write_json(self, name: str, what: object) -> None:
        text = msgspec.json.format(msgspec.json.encode(what))
        replace_file(self._folder / name, text + b"\n")

    @property
    def where(self) -> str:
        """The file."""
        return str(self._folder / _METRICS)


def _quoted(text: str) -> str:
    return lines([[safe_cell(text)]]).decode().removesuffix("\r\n")


def _without_config(run: Run) -> dict[str, Any]:
    """The config has a file of its own."""
    about: dict[str, Any] = msgspec.to_builtins(run)
    del about["config"]
    return about

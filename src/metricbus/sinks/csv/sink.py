"""Writes tidy CSV files: one line per value or medium in `metrics.csv`.

The columns are `step`, `epoch`, `time` (seconds since 1970-01-01 UTC, with nine decimals), `name`,
`value` and `kind`. Lines follow RFC 4180 and end in CR LF. The kinds are

* `scalar`: a value; floats read back exactly;
* `partial`: the pending aggregate of a reduction whose process died;
* `rewind`: no value; the lines above it with a greater step are superseded;
* `histogram`, `image`, `table`, `text`, `audio`, `video`, `chart` or `file`: a medium; the value is
  the path of its file (see `metricbus.sinks.csv.media`);
* `caption` or `chart_data`: a part of the medium in the line above.

Later versions may add kinds, so readers should skip those that they do not know.

A name that a spreadsheet would evaluate as a formula, or that begins with an apostrophe, gets an
apostrophe in front. Removing one leading apostrophe therefore restores every name. Numbers are
never changed: -0.5 stays a number.

Next to it, `config.json` holds the run's config, and `run.json` its name, tags, summary and final
status.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common.files import replace_file
from metricbus._common.media_records import MEDIA_RECORD_TYPES, MediumRecord
from metricbus._common.records import Rewind, RunUpdate, ScalarRow, Status
from metricbus._journal.run import Run
from metricbus.errors import RecordsLostError
from metricbus.sinks.base import FileSink
from metricbus.sinks.csv.cells import lines, quoted, seconds
from metricbus.sinks.csv.files import AppendTransaction
from metricbus.sinks.csv.media import HISTOGRAMS, TABLES, CsvMedia

COLUMNS = ("step", "epoch", "time", "name", "value", "kind")

_METRICS = "metrics.csv"
_STATE_KEYS = {"length": _METRICS, "histograms": HISTOGRAMS, "tables": TABLES}


class CsvSink(FileSink):
    """Appends to `metrics.csv` in the run folder, or in `FOLDER/<run id>` with `csv:FOLDER`."""

    kinds = (ScalarRow, Rewind, RunUpdate, *MEDIA_RECORD_TYPES)

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Truncate the files to the lengths in `state`, and append from there."""
        self._folder = self.folder_for(run, folder, "csv")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_run(run)
        self._quoted_names: dict[str, str] = {}
        lengths = {path: state[key] for key, path in _STATE_KEYS.items() if key in state}
        self._files = files = AppendTransaction(self._folder, lengths)
        copies = bool(self.location)
        self._media = CsvMedia(
            folder, self._folder, files, copies=copies, log_fallback=self.log_fallback
        )
        try:
            if not files.file(_METRICS).length:
                files.append(_METRICS, b"", lines([COLUMNS]))
            self._media.resume()
            files.commit()
        except BaseException:
            files.close()
            raise

    def write(self, records: Sequence[Any]) -> None:
        """Append the records to all files, or to none."""
        if updates := [record for record in records if isinstance(record, RunUpdate)]:
            self._write_run(self._run.updated(*updates))
        try:
            text = "".join(self._lines(records))
            self._media.finish()
            self._files.append(_METRICS, text.encode(), b"")
        except RecordsLostError:
            raise
        except BaseException:
            self._media.discard()
            self._files.rollback()
            raise
        self._files.commit()

    def _lines(self, records: Sequence[Any]) -> list[str]:
        # In rows, only names can need quoting. Each is quoted once.
        quoted_names = self._quoted_names
        result: list[str] = []
        for record in records:
            start = f"{record.step},{record.epoch},{seconds(record.time)},"
            if type(record) is ScalarRow:
                kind = "partial" if record.partial else "scalar"
                for name, value in record.values.items():
                    cell = quoted_names.get(name)
                    if cell is None:
                        cell = quoted_names[name] = quoted(name)
                    result.append(f"{start}{cell},{value!r},{kind}\r\n")
            elif isinstance(record, Rewind):
                result.append(f"{start},,rewind\r\n")
            elif isinstance(record, MediumRecord):
                cell = quoted(record.name)
                for text, kind in self._media.add(record):
                    result.append(f"{start}{cell},{quoted(text)},{kind}\r\n")
        return result

    def flush(self) -> Mapping[str, Any]:
        """Return the committed lengths."""
        lengths = self._files.lengths
        return {key: lengths[path] for key, path in _STATE_KEYS.items() if path in lengths}

    def close(self, status: Status) -> None:
        """Close the files and write the final status to `run.json`."""
        self._files.close()
        ended = None if status == "running" else self._run.ended or time.time_ns()
        self._write_run(msgspec.structs.replace(self._run, status=status, ended=ended))

    def _write_run(self, run: Run) -> None:
        self._run = run
        fields = msgspec.json.decode(run.to_json())
        for name, content in (("config.json", fields.pop("config")), ("run.json", fields)):
            text = msgspec.json.format(msgspec.json.encode(content))
            replace_file(self._folder / name, text + b"\n")

    @property
    def where(self) -> str:
        """Path of `metrics.csv`."""
        return str(self._folder / _METRICS)

"""Writes media as files next to `metrics.csv`, with lines that refer to them.

Paths in CSV files are relative to the folder of `metrics.csv` and use slashes. They refer to the
run's media folder (`../media/…`), or, if the sink has a location, to copies under `media/…`. A file
that was logged without copying keeps its absolute path.

`histograms.csv` has one line with the totals of each histogram, followed by one line per bin
(`low`, `high`, `bin_count`). Each kind of line leaves the columns of the other empty.

`tables/<name>-<table>.csv` holds one table, with its columns as the header. `tables.csv` has a line
for each logged part of a table: when it was logged, its rows (`first_row`, `rows`), and the length
of the table's file after it in bytes (`end`). In cells, text is made safe as in `metrics.csv`,
numbers read back exactly, booleans are `true` and `false`, images are paths, and None is empty.

`charts/<name>/<step>-….csv` holds the data of one chart.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from metricbus._common import media_records as media
from metricbus._common.files import replace_file, replacing
from metricbus._journal.media_files import MediaFolder, make_file_ref, safe_name
from metricbus.errors import MediaError
from metricbus.sinks.csv.cells import lines, safe_cell, seconds
from metricbus.sinks.csv.files import AppendTransaction
from metricbus.sinks.media_text import caption_of, cell_text, kind_of

HISTOGRAMS, TABLES = "histograms.csv", "tables.csv"

_LOG_COLUMNS = ("step", "epoch", "time", "name")
_BIN_COLUMNS = ("low", "high", "bin_count")
_PART_COLUMNS = ("path", "first_row", "rows", "end")
_TOTALS = ("count", "min", "max", "mean", "std", "sum", "sum_squares", "nan", "inf", "minus_inf")
_FIELDS = {"min": "minimum", "max": "maximum", "inf": "infinite", "minus_inf": "minus_infinite"}
"""Fields of `HistogramRecord` that are not named like their column."""

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


class CsvMedia:
    """Writes the media of the run in `folder` next to the `metrics.csv` in `output`.

    If `copies` is set, media files are copied to `output`. `log_fallback` is that of the sink.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        files: AppendTransaction,
        *,
        copies: bool,
        log_fallback: Callable[[str, str], None],
    ) -> None:
        self._media = MediaFolder(folder)
        self._folder = folder
        self._output = output
        self._files = files
        self._copies = copies
        self._log_fallback = log_fallback
        self._histograms: list[Sequence[str]] = []
        self._table_parts: list[Sequence[str]] = []

    def resume(self) -> None:
        """Restore the committed lengths of the existing files; those of tables are in `tables.csv`.

        Bytes beyond them are truncated.
        """
        if (self._output / HISTOGRAMS).exists():
            self._files.file(HISTOGRAMS)
        if (self._output / TABLES).exists():
            with open(self._files.file(TABLES).path, newline="", encoding="utf-8") as file:
                for part in csv.DictReader(file):
                    self._files.lengths[part["path"]] = int(part["end"])

    def add(self, record: media.MediumRecord) -> list[tuple[str, str]]:
        """Write the record's files; return `value` and `kind` of its lines in `metrics.csv`."""
        match record:
            case media.HistogramRecord():
                self._histograms += _histogram_lines(record)
                value = HISTOGRAMS
            case media.TableRecord():
                value = self._add_table_part(record)
            case media.ChartRecord():
                data = self._write_chart_data(record)
                return [(self._stored_path(record.picture), "chart"), (data, "chart_data")]
            case media.ImageRecord():
                if record.boxes or record.masks:
                    self._log_fallback(
                        "images with boxes or masks", "images with these drawn onto them"
                    )
                value = self._stored_path(record.drawn)
            case (
                media.TextRecord() | media.AudioRecord() | media.VideoRecord() | media.FileRecord()
            ):
                value = self._stored_path(record.file)
            case _:
                raise TypeError(f"cannot write a medium of the unknown kind {kind_of(record)!r}")
        caption = caption_of(record)
        return [(value, kind_of(record)), *([(caption, "caption")] if caption else [])]

    def finish(self) -> None:
        """Append the lines that `add` has collected for `histograms.csv` and `tables.csv`."""
        if self._histograms:
            header = lines([[*_LOG_COLUMNS, *_TOTALS, *_BIN_COLUMNS]])
            self._files.append(HISTOGRAMS, lines(self._histograms), header)
        if self._table_parts:
            header = lines([[*_LOG_COLUMNS, *_PART_COLUMNS]])
            self._files.append(TABLES, lines(self._table_parts), header)
        self.discard()

    def discard(self) -> None:
        """Discard the lines that `add` has collected."""
        self._histograms, self._table_parts = [], []

    def _add_table_part(self, record: media.TableRecord) -> str:
        table = record.table if _PLAIN_ID.fullmatch(record.table) else safe_name(record.table)
        path = f"tables/{safe_name(record.name)}-{table}.csv"
        rows = self._media.rows(record)
        header = lines([list(map(safe_cell, record.columns))])
        self._files.append(path, lines(map(self._cells, rows)), header)
        end = self._files.lengths[path]
        part = path, str(record.first_row), str(len(rows)), str(end)
        self._table_parts.append([*_log_cells(record), *part])
        return path

    def _write_chart_data(self, record: media.ChartRecord) -> str:
        name = PurePosixPath(record.data.path).stem
        path = f"charts/{safe_name(record.name)}/{name}.csv"
        rows = [list(map(safe_cell, record.columns)), *map(self._cells, self._media.rows(record))]
        target = self._output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, lines(rows))
        return path

    def _cells(self, row: Sequence[media.Cell]) -> list[str]:
        return [
            safe_cell(cell)
            if isinstance(cell, str)
            else self._stored_path(cell.file)
            if isinstance(cell, media.ImageCell)
            else cell_text(cell)
            for cell in row
        ]

    def _stored_path(self, ref: media.FileRef) -> str:
        """Return the path for a CSV cell, after the file has been copied or verified."""
        if os.path.isabs(ref.path):
            return ref.path
        if self._copies:
            self._copy(ref)
            return ref.path
        self._media.path(ref)
        return os.path.relpath(self._folder / ref.path, self._output)

    def _copy(self, ref: media.FileRef) -> None:
        # The journal may come from an untrusted source: write only below media/.
        parts = PurePosixPath(ref.path).parts
        if parts[0] != "media" or ".." in parts:
            raise MediaError(f"cannot copy {ref.path}: the path is not in media/")
        target = self._output / ref.path
        if target.is_file() and make_file_ref(target, ref.path) == ref:
            return
        source = self._media.path(ref)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
            if make_file_ref(temporary, ref.path) != ref:
                raise MediaError(f"{source} changed while it was being copied")


def _log_cells(record: media.MediumRecord) -> list[str]:
    return [str(record.step), str(record.epoch), seconds(record.time), safe_cell(record.name)]


def _histogram_lines(record: media.HistogramRecord) -> list[list[str]]:
    start = _log_cells(record)
    totals = [cell_text(getattr(record, _FIELDS.get(column, column))) for column in _TOTALS]
    no_totals, no_bin = [""] * len(_TOTALS), [""] * len(_BIN_COLUMNS)
    bins = zip(record.edges, record.edges[1:], record.counts, strict=False)
    return [
        [*start, *totals, *no_bin],
        *([*start, *no_totals, repr(low), repr(high), str(count)] for low, high, count in bins),
    ]

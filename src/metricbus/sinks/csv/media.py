"""What media become beside `metrics.csv`: files, and lines that say where they lie.

Paths in CSV files are relative to the folder of `metrics.csv`, with slashes. They lead to the run's
`media/`, `../media/…`; a sink with a location of its own has copies, under `media/…`. (A file that
was not copied when it was logged stays where it is; its path is absolute.)

`histograms.csv` has a line for each histogram, with its totals, and after it one for each of its
bins: `low`, `high`, `bin_count`. Each kind of line leaves the other's columns empty.

`tables/<name>-<table>.csv` has a table, with its columns as the header; `tables.csv` a line for
each part of one that was logged: when, which rows (`first_row`, `rows`), and the bytes that the
table had then (`end`). In cells, text is made safe as in `metrics.csv`, numbers read back exactly,
booleans are `true` and `false`, pictures their paths, and None is empty.

`charts/<name>/<step>-….csv` has a chart's data.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from metricbus._common.files import replace_file
from metricbus._common.media_records import (
    AudioRecord,
    Cell,
    ChartRecord,
    FileRecord,
    FileRef,
    HistogramRecord,
    ImageRecord,
    MediumRecord,
    Picture,
    TableRecord,
    TextRecord,
    VideoRecord,
)
from metricbus._journal.media_files import MediaFolder, ref_of, safe_name
from metricbus.errors import MediaError
from metricbus.sinks.csv.cells import lines, safe_cell, seconds
from metricbus.sinks.csv.files import GrowingFiles
from metricbus.sinks.media_text import caption_of, kind_of, plain_cell

HISTOGRAMS, TABLES = "histograms.csv", "tables.csv"

_WHEN = ("step", "epoch", "time", "name")
_TOTALS = ("count", "min", "max", "mean", "std", "sum", "sum_squares", "nan", "inf", "minus_inf")
_BINS = ("low", "high", "bin_count")
_PARTS = ("path", "first_row", "rows", "end")

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


class CsvMedia:
    """Writes the media of the run in `folder` beside the `metrics.csv` in `own`.

    With `copies`, files go there, too. `tell` is told of what has no place in files.
    """

    def __init__(
        self,
        folder: Path,
        own: Path,
        files: GrowingFiles,
        *,
        copies: bool,
        tell: Callable[[str, str], None],
    ) -> None:
        self._media = MediaFolder(folder)
        self._folder = folder
        self._own = own
        self._files = files
        self._copies = copies
        self._tell = tell
        self._histograms: list[Sequence[str]] = []
        self._parts: list[Sequence[str]] = []

    def go_on(self) -> None:
        """Goes on with the files that are there; `tables.csv` says how much of each table counts.

        What of them does not count is cut off.
        """
        if (self._own / HISTOGRAMS).exists():
            self._files.file(HISTOGRAMS)
        if (self._own / TABLES).exists():
            with open(self._files.file(TABLES).path, newline="", encoding="utf-8") as file:
                for part in csv.DictReader(file):
                    self._files.lengths[part["path"]] = int(part["end"])

    def add(self, record: MediumRecord) -> list[tuple[str, str]]:
        """Writes the record's files; the `value` and `kind` of its lines in `metrics.csv`."""
        match record:
            case HistogramRecord():
                self._histograms += _histogram_lines(record)
                value = HISTOGRAMS
            case TableRecord():
                value = self._add_rows(record)
            case ChartRecord():
                data = self._write_data(record)
                return [(self._place(record.picture), "chart"), (data, "chart_data")]
            case ImageRecord():
                if record.boxes or record.masks:
                    self._tell(
                        "image with boxes or masks",
                        "the picture with boxes and masks drawn onto it",
                    )
                value = self._place(record.drawn)
            case TextRecord() | AudioRecord() | VideoRecord() | FileRecord():
                value = self._place(record.file)
            case _:
                raise TypeError(f"a {kind_of(record)} is no medium that CSV knows")
        caption = caption_of(record)
        return [(value, kind_of(record)), *([(caption, "caption")] if caption else [])]

    def finish(self) -> None:
        """Writes what `add` has gathered."""
        if self._histograms:
            header = lines([[*_WHEN, *_TOTALS, *_BINS]])
            self._files.append(HISTOGRAMS, lines(self._histograms), header)
        if self._parts:
            self._files.append(TABLES, lines(self._parts), lines([[*_WHEN, *_PARTS]]))
        self.forget()

    def forget(self) -> None:
        """Forgets what `add` has gathered."""
        self._histograms, self._parts = [], []

    def _add_rows(self, record: TableRecord) -> str:
        table = record.table if _PLAIN_ID.fullmatch(record.table) else safe_name(record.table)
        path = f"tables/{safe_name(record.name)}-{table}.csv"
        rows = self._media.rows(record)
        piece = lines(map(self._cells, rows))
        self._files.append(path, piece, lines([list(map(safe_cell, record.columns))]))
        end = self._files.lengths[path]
        about = path, str(record.first_row), str(len(rows)), str(end)
        self._parts.append([*_when(record), *about])
        return path

    def _write_data(self, record: ChartRecord) -> str:
        name = PurePosixPath(record.data.path).stem
        path = f"charts/{safe_name(record.name)}/{name}.csv"
        rows = [list(map(safe_cell, record.columns)), *map(self._cells, self._media.rows(record))]
        target = self._own / path
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, lines(rows))
        return path

    def _cells(self, row: Sequence[Cell]) -> list[str]:
        return [
            safe_cell(cell)
            if isinstance(cell, str)
            else self._place(cell.file)
            if isinstance(cell, Picture)
            else plain_cell(cell)
            for cell in row
        ]

    def _place(self, ref: FileRef) -> str:
        """Sees to it that the file is where the path leads that this returns."""
        if os.path.isabs(ref.path):
            return ref.path
        if self._copies:
            self._copy(ref)
            return ref.path
        self._media.path(ref)
        return os.path.relpath(self._folder / ref.path, self._own)

    def _copy(self, ref: FileRef) -> None:
        parts = PurePosixPath(ref.path).parts
        if parts[0] != "media" or ".." in parts:  # a stranger's journal
            raise MediaError(f"{ref.path} does not lie in media/")
        target = self._own / ref.path
        if target.is_file() and ref_of(target, ref.path) == ref:
            return
        source = self._media.path(ref)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            shutil.copyfile(source, temporary)
            if ref_of(temporary, ref.path) != ref:
                raise MediaError(f"{source} was changed while it was being copied")
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _when(record: MediumRecord) -> list[str]:
    return [str(record.step), str(record.epoch), seconds(record.time), safe_cell(record.name)]


def _histogram_lines(record: HistogramRecord) -> list[list[str]]:
    when = _when(record)
    totals = [
        record.count,
        record.minimum,
        record.maximum,
        record.mean,
        record.std,
        record.sum,
        record.sum_squares,
        record.nan,
        record.infinite,
        record.minus_infinite,
    ]
    blank = [""] * len(_TOTALS)
    bins = zip(record.edges, record.edges[1:], record.counts, strict=False)
    return [
        [*when, *map(plain_cell, totals), "", "", ""],
        *([*when, *blank, repr(low), repr(high), str(count)] for low, high, count in bins),
    ]

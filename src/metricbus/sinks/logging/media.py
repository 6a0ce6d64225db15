"""A medium as one line of a log: what it is, how large, and where its file lies."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

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
    decode_rows,
)
from metricbus._journal.media_files import MediaFolder
from metricbus.errors import MediaError
from metricbus.sinks.media_text import caption_of, kind_of, plain_cell

_LONGEST = 200
_BLANKS = re.compile(r"\s+")


class MediaLines:
    """Makes the lines for the run in `folder`; `printable` escapes a word."""

    def __init__(self, folder: Path, printable: Callable[[str], str]) -> None:
        self._folder = folder.absolute()
        self._media = MediaFolder(folder)
        self._printable = printable

    def line(self, record: MediumRecord) -> str:
        """The record as one line of text, numbers to six significant digits."""
        caption = caption_of(record)
        told = f" {self._shown(caption)}" if caption else ""
        name = self._printable(record.name)
        start = f"step {record.step} epoch {record.epoch} | {name}: {kind_of(record)}"
        return f"{start} {self._about(record)}{told}"

    def _about(self, record: MediumRecord) -> str:
        match record:
            case HistogramRecord():
                return _totals(record)
            case ImageRecord():
                return f"{record.width}x{record.height} in {self._path(record.drawn)}"
            case TableRecord():
                size = f"{record.rows:,} rows of {len(record.columns):,} columns"
                return f"{size} in {self._path(record.file)}{self._first_row(record)}"
            case TextRecord():
                path = self._path(record.file)
                return f"of {record.length:,} characters in {path}: {self._shown(record.start)}"
            case AudioRecord():
                secs = record.frames / record.sample_rate if record.sample_rate else 0
                return f"{_length(secs)}({record.format}) in {self._path(record.file)}"
            case VideoRecord():
                secs = record.frames / record.fps if record.fps else 0
                return f"{_length(secs)}({record.format}) in {self._path(record.file)}"
            case ChartRecord():
                title = f" {self._shown(record.title)}" if record.title else ""
                return f"of {record.rows:,} rows in {self._path(record.picture)}{title}"
            case FileRecord():
                return f"of {record.file.size:,} bytes in {self._path(record.file)}"
        raise TypeError(f"a {kind_of(record)} is no medium that has a line")

    def _first_row(self, record: TableRecord) -> str:
        """How the table begins; only that much of it is decoded, in the training's process."""
        path = self._media.path(record.file)
        with open(path, "rb") as file:
            line = file.readline()
        try:
            rows = decode_rows(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MediaError(f"{path} is no table: {error}") from error
        cells = zip(record.columns, *rows[:1], strict=False) if rows else ()
        told = " ".join(f"{self._printable(name)}={self._cell(cell)}" for name, cell in cells)
        return f", first row: {told}" if told else ""

    def _cell(self, cell: Cell) -> str:
        if isinstance(cell, Picture):
            return self._path(cell.file)
        if isinstance(cell, str):
            return self._shown(cell)
        return f"{cell:.6g}" if isinstance(cell, float) else plain_cell(cell)

    def _path(self, ref: FileRef) -> str:
        return self._printable(str(self._folder / ref.path))

    def _shown(self, text: str) -> str:
        """The text on this line, not too long."""
        words = _BLANKS.sub(" ", text).strip()
        return self._printable(words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…")


def _totals(record: HistogramRecord) -> str:
    told = [f"of {record.count:,} values"]
    if record.count:
        quartiles = ",".join(_number(record.quantile(q)) for q in (0.25, 0.5, 0.75))
        told.append(f"min={_number(record.minimum)} mean={_number(record.mean)}")
        told.append(f"max={_number(record.maximum)} quartiles={quartiles}")
    apart = {"nan": record.nan, "inf": record.infinite, "-inf": record.minus_infinite}
    told += [f"{word}={count}" for word, count in apart.items() if count]
    return " ".join(told)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.6g}"


def _length(secs: float) -> str:
    return f"of {secs:.6g} s " if secs else ""

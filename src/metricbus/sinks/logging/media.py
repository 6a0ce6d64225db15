"""Formats a medium as one log line: what it is, its size, and the path of its file."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from metricbus._common import media_records as media
from metricbus._journal.media_files import MediaFolder
from metricbus.errors import MediaError
from metricbus.sinks.media_text import caption_of, cell_text, kind_of, quote_name

_MAX_TEXT_LENGTH = 200
_WHITESPACE = re.compile(r"\s+")


class MediaLines:
    """Formats the media of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._media = MediaFolder(folder)

    def line(self, record: media.MediumRecord) -> str:
        """Return the record as one line of text; numbers have six significant digits.

        Raises `MediaError` or `OSError` if the file of a table cannot be read.
        """
        caption = caption_of(record)
        suffix = f" {self._excerpt(caption)}" if caption else ""
        name = quote_name(record.name)
        start = f"step {record.step} epoch {record.epoch} | {name}: {kind_of(record)}"
        return f"{start} {self._describe(record)}{suffix}"

    def _describe(self, record: media.MediumRecord) -> str:
        match record:
            case media.HistogramRecord():
                return _describe_histogram(record)
            case media.ImageRecord():
                return f"{record.width}x{record.height} in {self._path(record.drawn)}"
            case media.TableRecord():
                size = f"{record.rows:,} rows of {len(record.columns):,} columns"
                return f"{size} in {self._path(record.file)}{self._first_row(record)}"
            case media.TextRecord():
                path = self._path(record.file)
                return f"of {record.length:,} characters in {path}: {self._excerpt(record.start)}"
            case media.AudioRecord():
                return self._describe_clip(record, record.sample_rate)
            case media.VideoRecord():
                return self._describe_clip(record, record.fps)
            case media.ChartRecord():
                title = f" {self._excerpt(record.title)}" if record.title else ""
                return f"of {record.rows:,} rows in {self._path(record.picture)}{title}"
            case media.FileRecord():
                return f"of {record.file.size:,} bytes in {self._path(record.file)}"
        raise TypeError(f"cannot format a medium of the unknown kind {kind_of(record)!r}")

    def _describe_clip(
        self, record: media.AudioRecord | media.VideoRecord, frames_per_sec: float
    ) -> str:
        secs = record.frames / frames_per_sec if frames_per_sec else 0
        duration = f"of {secs:.6g} s " if secs else ""
        return f"{duration}({record.format}) in {self._path(record.file)}"

    def _first_row(self, record: media.TableRecord) -> str:
        """Decode only the first row, because this runs in the training process."""
        path = self._media.path(record.file)
        with open(path, "rb") as file:
            line = file.readline()
        try:
            rows = media.decode_rows(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MediaError(f"{path} is not a valid table: {error}") from error
        cells = zip(record.columns, *rows[:1], strict=False) if rows else ()
        text = " ".join(f"{quote_name(name)}={self._cell(cell)}" for name, cell in cells)
        return f", first row: {text}" if text else ""

    def _cell(self, cell: media.Cell) -> str:
        if isinstance(cell, media.ImageCell):
            return self._path(cell.file)
        if isinstance(cell, str):
            return self._excerpt(cell)
        return f"{cell:.6g}" if isinstance(cell, float) else cell_text(cell)

    def _path(self, ref: media.FileRef) -> str:
        return quote_name(str(self._folder / ref.path))

    def _excerpt(self, text: str) -> str:
        """Return the beginning of the text on one line."""
        line = _WHITESPACE.sub(" ", text).strip()
        if len(line) > _MAX_TEXT_LENGTH:
            line = line[: _MAX_TEXT_LENGTH - 1] + "…"
        return quote_name(line)


def _describe_histogram(record: media.HistogramRecord) -> str:
    parts = [f"of {record.count:,} values"]
    if record.count:
        quartiles = ",".join(_number(record.quantile(q)) for q in (0.25, 0.5, 0.75))
        parts.append(f"min={_number(record.minimum)} mean={_number(record.mean)}")
        parts.append(f"max={_number(record.maximum)} quartiles={quartiles}")
    nonfinite = {"nan": record.nan, "inf": record.infinite, "-inf": record.minus_infinite}
    parts += [f"{name}={count}" for name, count in nonfinite.items() if count]
    return " ".join(parts)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.6g}"

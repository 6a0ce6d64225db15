"""Conversion of media to TensorBoard events, and the choice of their tags.

TensorBoard supports histograms, images, WAV audio, texts and animated GIFs. The other media become
one of these: a table a text with its first rows, a chart an image, and a file, or audio and video
in other formats, a text with the path. A caption is a separate text at the same step, with the tag
`<name>/caption`.

TensorBoard shows each tag in one plugin only. If a name is already used for another plugin, the
kind of the later medium is appended to its tag, as in `samples (image)`. This applies across all
lanes of a run (see `sink`), and depends only on what is in their files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from metricbus._common import media_records as media
from metricbus._common.records import ScalarRow
from metricbus._compat.tensorboard import (
    DATA_CLASS_BLOB_SEQUENCE,
    DT_STRING,
    Event,
    HistogramProto,
    Summary,
    TensorProto,
    TensorShapeProto,
    audio,
    text,
)
from metricbus._journal.media_files import MediaFolder
from metricbus.sinks.media_text import caption_of, cell_text, kind_of
from metricbus.sinks.tensorboard.event_file import SCALAR, EventFile

_FIRST_ROWS = 10
_MAX_BYTES = 1 << 30  # an event must be smaller than 2 GiB
_TEXT = text.create_summary_metadata(display_name=None, description=None)
_WAV = audio.create_summary_metadata(
    display_name=None,
    description=None,
    encoding=audio.Encoding.Value("WAV"),
    converted_to_tensor=True,
)
_WAV.data_class = DATA_CLASS_BLOB_SEQUENCE  # otherwise the data server drops the encoding
_UNSUPPORTED = {
    "file": "files",
    "audio": "audio other than WAV up to 1 GiB",
    "video": "videos other than GIFs up to 1 GiB",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|>])")
_WHITESPACE = re.compile(r"\s+")


class Tags:
    """The tags that the lanes of a run use, and the plugin of each."""

    def __init__(self, lanes: Mapping[str, EventFile]) -> None:
        """Read the tags of the lanes; more lanes may be added to the mapping later."""
        self._lanes = lanes
        self._media: dict[str, str] = {}  # by tag, the field of `Summary.Value` with its values
        for lane in lanes.values():
            for tag, field in lane.media_tags.items():
                self._media.setdefault(tag, field)

    def reserve(self, record: media.MediumRecord) -> list[str]:
        """Return the tags of a medium and of its caption, if any, and reserve them."""
        kind = kind_of(record)
        tags = [self._available(record.name, _field(record), kind)]
        if _caption(record):
            tags.append(self._available(f"{record.name}/caption", "tensor", "text"))
        return tags

    def without_conflicts(self, row: ScalarRow) -> ScalarRow:
        """Return the row with those values renamed whose names are tags of media."""
        if self._media.keys().isdisjoint(row.values.keys()):
            return row
        values = {
            self._available(name, SCALAR, "scalar"): value for name, value in row.values.items()
        }
        return msgspec.structs.replace(row, values=values)

    def _available(self, name: str, field: str, kind: str) -> str:
        while self._current_field(name) not in ("", field):
            name = f"{name} ({kind})"
        if field != SCALAR:
            self._media[name] = field
        return name

    def _current_field(self, tag: str) -> str:
        field = self._media.get(tag, "")
        if not field and any(tag in lane.last_steps for lane in self._lanes.values()):
            return SCALAR
        return field


class MediaEventBuilder:
    """Converts the media of a run folder to events; calls `log_fallback` for replacements."""

    def __init__(self, folder: Path, log_fallback: Callable[[str, str], None]) -> None:
        self._folder = folder
        self._media = MediaFolder(folder)
        self._log_fallback = log_fallback

    def check(self, records: Sequence[Any]) -> None:
        """Raise `MediaError` if a file that the events need is missing or has changed."""
        for record in records:
            if isinstance(record, media.MediumRecord):
                for ref in _files(record):
                    self._media.path(ref)

    def event(self, record: media.MediumRecord, tags: Sequence[str]) -> bytes:
        """Return the serialized event of a medium, with the tags from `Tags.reserve`."""
        values = [self._value(record, tags[0])]
        if caption := _caption(record):
            values.append(_text(tags[1], caption))
        event = Event(wall_time=record.time / 1e9, step=record.x, summary=Summary(value=values))
        return bytes(event.SerializeToString())

    def _value(self, record: media.MediumRecord, tag: str) -> Summary.Value:
        match record:
            case media.HistogramRecord():
                return Summary.Value(tag=tag, histo=_histogram(record))
            case media.ImageRecord():
                if record.boxes or record.masks:
                    self._log_fallback(
                        "boxes and masks", "the image with boxes and masks drawn onto it"
                    )
                return self._image(tag, record.drawn, record, record.channels)
            case media.ChartRecord():
                self._log_fallback("charts", "an image of the chart")
                return self._image(tag, record.picture, record, 3)
            case media.VideoRecord() if _is_native(record):
                return self._image(tag, record.file, record, 3)
            case media.AudioRecord() if _is_native(record):
                return Summary.Value(tag=tag, metadata=_WAV, audio=self._audio(record))
            case media.TextRecord():
                return _text(tag, self._media.text(record.file))
            case media.TableRecord():
                self._log_fallback("tables", "the first rows as text")
                return _text(tag, self._first_rows(record))
            case media.FileRecord() | media.AudioRecord() | media.VideoRecord():
                self._log_fallback(_UNSUPPORTED[kind_of(record)], "the path as text")
                return _text(tag, self._path(record.file))
        raise TypeError(
            f"the TensorBoard sink does not support media of the kind {kind_of(record)}"
        )

    def _image(
        self,
        tag: str,
        ref: media.FileRef,
        size: media.ImageRecord | media.ChartRecord | media.VideoRecord,
        channels: int,
    ) -> Summary.Value:
        image = Summary.Image(
            width=size.width,
            height=size.height,
            colorspace=channels,
            encoded_image_string=self._media.read(ref),
        )
        return Summary.Value(tag=tag, image=image)

    def _audio(self, record: media.AudioRecord) -> Summary.Audio:
        return Summary.Audio(
            sample_rate=record.sample_rate,
            num_channels=record.channels,
            length_frames=record.frames,
            encoded_audio_string=self._media.read(record.file),
            content_type="audio/wav",
        )

    def _first_rows(self, record: media.TableRecord) -> str:
        rows = self._media.rows(record)
        header = [_escape(column) for column in record.columns]
        lines = [header, ["---"] * len(header)]
        lines += [[self._cell(cell) for cell in row] for row in rows[:_FIRST_ROWS]]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        more = f"{len(rows) - _FIRST_ROWS:,} more rows" if len(rows) > _FIRST_ROWS else "all rows"
        offset = f", from row {record.first_row:,} of the table on" if record.first_row else ""
        return f"{table}\n\n{more} in {self._path(record.file)}{offset}"

    def _cell(self, cell: media.Cell) -> str:
        if isinstance(cell, media.ImageCell):
            return self._path(cell.file)
        return _escape(cell) if isinstance(cell, str) else cell_text(cell)

    def _path(self, ref: media.FileRef) -> str:
        return _escape(str(self._folder.absolute() / ref.path))


def _is_native(record: media.AudioRecord | media.VideoRecord) -> bool:
    native = "wav" if isinstance(record, media.AudioRecord) else "gif"
    return record.format.lower() == native and record.file.size <= _MAX_BYTES


def _field(record: media.MediumRecord) -> str:
    """Return the field of `Summary.Value` that holds the medium."""
    match record:
        case media.HistogramRecord():
            return "histo"
        case media.ImageRecord() | media.ChartRecord():
            return "image"
        case media.AudioRecord() | media.VideoRecord() if _is_native(record):
            return "audio" if isinstance(record, media.AudioRecord) else "image"
    return "tensor"


def _files(record: media.MediumRecord) -> list[media.FileRef]:
    """Return the files in the run folder that are read, or whose path becomes a text."""
    match record:
        case media.HistogramRecord() | media.FileRecord(copied=False):
            return []
        case media.ImageRecord():
            return [record.drawn]
        case media.ChartRecord():
            return [record.picture]
        case (
            media.TableRecord()
            | media.TextRecord()
            | media.AudioRecord()
            | media.VideoRecord()
            | media.FileRecord()
        ):
            return [record.file]
    return []


def _caption(record: media.MediumRecord) -> str:
    if not isinstance(record, media.HistogramRecord):
        return caption_of(record)
    nonfinite = {"NaN": record.nan, "Infinity": record.infinite, "-Infinity": record.minus_infinite}
    counts = [f"{count:,} × {value}" for value, count in nonfinite.items() if count]
    return f"Not in the bins: {', '.join(counts)}." if counts else ""


def _histogram(record: media.HistogramRecord) -> HistogramProto:
    """Return the exact bins, after an empty one that ends at the lowest edge."""
    edges = record.edges
    unknown = math.nan if record.count else 0.0
    return HistogramProto(
        min=record.minimum if record.minimum is not None else edges[0] if edges else 0.0,
        max=record.maximum if record.maximum is not None else edges[-1] if edges else 0.0,
        num=record.count,
        sum=unknown if record.sum is None else record.sum,
        sum_squares=unknown if record.sum_squares is None else record.sum_squares,
        bucket_limit=edges,
        bucket=[0, *record.counts] if edges else [],
    )


def _text(tag: str, content: str) -> Summary.Value:
    tensor = TensorProto(
        dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content.encode()]
    )
    return Summary.Value(tag=tag, metadata=_TEXT, tensor=tensor)


def _escape(text: str) -> str:
    """Return the text on one line, escaped so that Markdown shows it literally."""
    escaped = _WHITESPACE.sub(" ", text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\1", escaped)

"""What media become in TensorBoard: an event each, and under which tags.

A histogram, an image, a WAV file, a text and an animated GIF are what TensorBoard knows itself. Of
a table, its text plugin shows the first rows; of a chart, its image plugin the picture; of a file,
and of audio and video in other formats, the text plugin the path. A caption is a text of its own,
beside it at the same step: `<name>/caption`.

TensorBoard shows a tag in one plugin alone. So where a name was used before by another one, the
later kind says what it is: `samples (image)`. That holds for all lanes, and follows from what is in
the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.histogram_pb2 import HistogramProto
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.audio import metadata as audio
from tensorboard.plugins.text import metadata as text

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
from metricbus._common.records import Scalars
from metricbus._journal.media_files import MediaFolder
from metricbus.sinks.media_text import caption_of, kind_of, plain_cell
from metricbus.sinks.tensorboard.event_file import SCALAR, EventFile

_FIRST_ROWS = 10
_LARGEST = 1 << 30  # an event must stay below 2 GiB
_TEXT = text.create_summary_metadata(display_name=None, description=None)
_WAV = audio.create_summary_metadata(
    display_name=None,
    description=None,
    encoding=audio.Encoding.Value("WAV"),
    converted_to_tensor=True,
)
_WAV.data_class = DATA_CLASS_BLOB_SEQUENCE  # else the data server forgets that it is WAV
_MARKS = re.compile(r"([\\`*_{}\[\]|>])")
_BLANKS = re.compile(r"\s+")


class Tags:
    """Whose each tag is, in the lanes of a run."""

    def __init__(self, lanes: Mapping[str, EventFile]) -> None:
        """`lanes` may get more."""
        self._lanes = lanes
        self._media: dict[str, str] = {}  # tag: the sort of value, as `Summary.Value` calls it
        for lane in lanes.values():
            for tag, sort in lane.media.items():
                self._media.setdefault(tag, sort)

    def of(self, record: MediumRecord) -> list[str]:
        """The tags of the record's values; they are taken from now on."""
        kind = kind_of(record)
        tags = [self._free(record.name, _sort(record), kind)]
        if _caption(record):
            tags.append(self._free(f"{record.name}/caption", "tensor", "text"))
        return tags

    def cleared(self, row: Scalars) -> Scalars:
        """The row, under other names where media have taken its own."""
        if self._media.keys().isdisjoint(row.values.keys()):
            return row
        values = {self._free(name, SCALAR, "scalar"): value for name, value in row.values.items()}
        return msgspec.structs.replace(row, values=values)

    def _free(self, name: str, sort: str, kind: str) -> str:
        while self._owner(name) not in ("", sort):
            name = f"{name} ({kind})"
        if sort != SCALAR:
            self._media[name] = sort
        return name

    def _owner(self, tag: str) -> str:
        sort = self._media.get(tag, "")
        if not sort and any(tag in lane.newest for lane in self._lanes.values()):
            return SCALAR
        return sort


class MediaEvents:
    """Makes the events of the media in a run's folder; `tell` is told of fallbacks."""

    def __init__(self, folder: Path, tell: Callable[[str, str], None]) -> None:
        self._folder = folder
        self._media = MediaFolder(folder)
        self._tell = tell

    def check(self, records: Sequence[Any]) -> None:
        """Sees to it that all files are there as they were logged; `MediaError` if not."""
        for record in records:
            if isinstance(record, MediumRecord):
                for ref in _files(record):
                    self._media.path(ref)

    def event(self, record: MediumRecord, tags: Sequence[str]) -> bytes:
        """The record's event under the tags that `Tags.of` gave, serialized."""
        values = [self._value(record, tags[0])]
        if caption := _caption(record):
            values.append(_text(tags[1], caption))
        event = Event(wall_time=record.time / 1e9, step=record.x, summary=Summary(value=values))
        data: bytes = event.SerializeToString()
        return data

    def _value(self, record: MediumRecord, tag: str) -> Summary.Value:
        match record:
            case HistogramRecord():
                return Summary.Value(tag=tag, histo=_histogram(record))
            case ImageRecord():
                if record.boxes or record.masks:
                    self._tell(
                        "image with boxes or masks",
                        "the picture with boxes and masks drawn onto it",
                    )
                return self._image(tag, record.drawn, record, record.channels)
            case ChartRecord():
                self._tell("chart", "a picture of it")
                return self._image(tag, record.picture, record, 3)
            case VideoRecord() if _is_native(record):
                return self._image(tag, record.file, record, 3)
            case AudioRecord() if _is_native(record):
                return Summary.Value(tag=tag, metadata=_WAV, audio=self._audio(record))
            case TextRecord():
                return _text(tag, self._media.text(record.file))
            case TableRecord():
                self._tell("table", "its first rows as text")
                return _text(tag, self._first_rows(record))
            case FileRecord():
                self._tell("file", "its path as text")
                return _text(tag, self._link(record.file))
            case AudioRecord() | VideoRecord():
                self._tell(kind_of(record), "its path as text")
                return _text(tag, self._link(record.file))
        raise TypeError(f"a {kind_of(record)} is no medium that TensorBoard knows")

    def _image(
        self, tag: str, ref: FileRef, size: ImageRecord | ChartRecord | VideoRecord, channels: int
    ) -> Summary.Value:
        image = Summary.Image(
            width=size.width,
            height=size.height,
            colorspace=channels,
            encoded_image_string=self._media.read(ref),
        )
        return Summary.Value(tag=tag, image=image)

    def _audio(self, record: AudioRecord) -> Summary.Audio:
        return Summary.Audio(
            sample_rate=record.sample_rate,
            num_channels=record.channels,
            length_frames=record.frames,
            encoded_audio_string=self._media.read(record.file),
            content_type="audio/wav",
        )

    def _first_rows(self, record: TableRecord) -> str:
        rows = self._media.rows(record)
        head = [_plain(column) for column in record.columns]
        lines = [head, ["---"] * len(head)]
        lines += [[self._cell(cell) for cell in row] for row in rows[:_FIRST_ROWS]]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        more = f"{len(rows) - _FIRST_ROWS:,} more rows" if len(rows) > _FIRST_ROWS else "all rows"
        begins = f", from row {record.first_row:,} of the table on" if record.first_row else ""
        return f"{table}\n\n{more} in {self._link(record.file)}{begins}"

    def _cell(self, cell: Cell) -> str:
        if isinstance(cell, Picture):
            return self._link(cell.file)
        return _plain(cell) if isinstance(cell, str) else plain_cell(cell)

    def _link(self, ref: FileRef) -> str:
        return _plain(str(self._folder.absolute() / ref.path))


def _is_native(record: AudioRecord | VideoRecord) -> bool:
    known = "wav" if isinstance(record, AudioRecord) else "gif"
    return record.format.lower() == known and record.file.size <= _LARGEST


def _sort(record: MediumRecord) -> str:
    match record:
        case HistogramRecord():
            return "histo"
        case ImageRecord() | ChartRecord():
            return "image"
        case AudioRecord() | VideoRecord() if _is_native(record):
            return "audio" if isinstance(record, AudioRecord) else "image"
    return "tensor"


def _files(record: MediumRecord) -> list[FileRef]:
    """The files that are read, or that a text leads to; not one that was left where it was."""
    match record:
        case HistogramRecord() | FileRecord(copied=False):
            return []
        case ImageRecord():
            return [record.drawn]
        case ChartRecord():
            return [record.picture]
        case TableRecord() | TextRecord() | AudioRecord() | VideoRecord() | FileRecord():
            return [record.file]
    return []


def _caption(record: MediumRecord) -> str:
    if not isinstance(record, HistogramRecord):
        return caption_of(record)
    apart = {"NaN": record.nan, "Infinity": record.infinite, "-Infinity": record.minus_infinite}
    told = [f"{count:,} × {value}" for value, count in apart.items() if count]
    return f"Not in the bins: {', '.join(told)}." if told else ""


def _histogram(record: HistogramRecord) -> HistogramProto:
    """All edges and counts: an empty bin comes first, which ends at the lowest edge."""
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
        dtype=types_pb2.DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content.encode()]
    )
    return Summary.Value(tag=tag, metadata=_TEXT, tensor=tensor)


def _plain(words: str) -> str:
    """The words on one line, so that Markdown shows it as it is."""
    shown = _BLANKS.sub(" ", words).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKS.sub(r"\\\1", shown)

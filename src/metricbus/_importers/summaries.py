"""What TensorBoard's summaries say: numbers, histograms, pictures, sounds, texts.

Each has two forms. The old one has a field of its own (`simple_value`, `histo`, `image`, `audio`);
the new one is a tensor, and the plugin that the tag's first value names tells what it means.
"""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from metricbus._common.media_base import EncodeContext, check_package
from metricbus._common.media_records import (
    AudioRecord,
    HistogramRecord,
    ImageRecord,
    VideoRecord,
)
from metricbus._common.records import Medium, Number
from metricbus._common.validation import to_number
from metricbus.media import Image, Text
from metricbus.media.histogram_bins import Binned, binned

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

OLD_FORMS = {
    "simple_value": "scalars",
    "histo": "histograms",
    "image": "images",
    "audio": "audio",
}
"""The plugin that shows each of the old forms."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">8x4x4xIIBB")  # width, height, bits a channel, colour type
_PNG_CHANNELS = {0: 1, 2: 3, 6: 4}  # grey, RGB, RGBA
_GIF = b"GIF8"
_FAR = 1e300  # TensorFlow writes the largest float64 for an edge that is none


def number_of(value: Summary.Value) -> Number:
    """The number; `ValueError` or `TypeError` if it is none."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    return to_number(value.tag, _array(value))


def media_of(value: Summary.Value, plugin: str, work: EncodeContext) -> list[Medium]:
    """The media in a value of this plugin: pictures may be several.

    Raises `ValueError` for what cannot be read.
    """
    if plugin == "histograms":
        fields = msgspec.structs.asdict(_histogram(value))
        return [work.record(HistogramRecord, **fields)]
    if plugin == "text":
        return [_text(value, work)]
    if plugin == "audio":
        return [_sound(sound, work) for sound in _sounds(value)]
    pictures = _pictures(value)
    records = [_picture(picture, work) for picture in pictures]
    if len(records) == 1:
        return records
    return [
        msgspec.structs.replace(record, name=f"{record.name}/{number}")
        for number, record in enumerate(records)
    ]


def _array(value: Summary.Value) -> Any:
    from tensorboard.util.tensor_util import make_ndarray

    return make_ndarray(value.tensor)


def _text(value: Summary.Value, work: EncodeContext) -> Medium:
    parts = np.atleast_1d(_array(value)).ravel().tolist()
    text = "\n\n".join(
        part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in parts
    )
    return _encoded(Text(text), work)


def _histogram(value: Summary.Value) -> Binned:
    if value.HasField("histo"):
        return _old_histogram(value.histo)
    buckets = np.asarray(_array(value), dtype=np.float64)
    if buckets.size == 0:
        return Binned([], [], 0)
    return _binned([(low, high, count) for low, high, count in buckets.reshape(-1, 3).tolist()])


def _old_histogram(histo: HistogramProto) -> Binned:
    """Each bucket ends at its limit; the first begins at the smallest value, if it has any."""
    limits, counts = list(histo.bucket_limit), list(histo.bucket)
    if not any(counts):
        return Binned([], [], 0)
    if counts[0] == 0:
        lows, highs, counts = limits[:-1], limits[1:], counts[1:]
    else:
        lows, highs = [histo.min, *limits[:-1]], limits
    if highs[-1] > _FAR:
        highs[-1] = max(histo.max, lows[-1])
    if lows[0] < -_FAR:
        lows[0] = min(histo.min, highs[0])
    found = _binned(list(zip(lows, highs, counts, strict=True)))
    return _with_totals(found, histo)


def _with_totals(found: Binned, histo: HistogramProto) -> Binned:
    """What the file knows of all values is better than what the bins' middles say."""
    mean, squares = histo.sum / found.count, histo.sum_squares / found.count
    std = math.sqrt(max(0.0, squares - mean * mean)) if math.isfinite(squares) else math.nan
    totals = {
        "minimum": histo.min,
        "maximum": histo.max,
        "mean": mean,
        "std": std,
        "sum": histo.sum,
        "sum_squares": histo.sum_squares,
    }
    known = {name: total if math.isfinite(total) else None for name, total in totals.items()}
    return msgspec.structs.replace(found, **known)


def _binned(buckets: Sequence[tuple[float, float, float]]) -> Binned:
    """The buckets as bins that touch: gaps become empty bins, empty bins without width go."""
    edges: list[float] = []
    counts: list[int] = []
    for left, right, count in buckets:
        if right <= left and not count:
            continue
        low, high = (left, right) if right > left else _around(left)
        if edges and low > edges[-1]:
            counts.append(0)
            edges.append(low)
        edges = edges or [low]
        counts.append(round(count))
        edges.append(high)
    array = np.array(edges, dtype=np.float64)
    if not np.isfinite(array).all() or not (np.diff(array) > 0).all() or min(counts, default=0) < 0:
        raise ValueError("its edges do not grow")
    return binned(np.array(counts, dtype=np.int64), array)


def _around(value: float) -> tuple[float, float]:
    """A bin for one value alone."""
    return math.nextafter(value, -math.inf), math.nextafter(value, math.inf)


def _pictures(value: Summary.Value) -> list[bytes]:
    if value.HasField("image"):
        return [value.image.encoded_image_string]
    return [bytes(one) for one in np.atleast_1d(_array(value)).ravel().tolist()[2:]]


def _picture(content: bytes, work: EncodeContext) -> Medium:
    """A PNG as it is, a GIF as a film, and whatever else Pillow reads as a PNG."""
    if content.startswith(_PNG) and len(content) >= _PNG_HEADER.size:
        width, height, bits, colour = _PNG_HEADER.unpack_from(content)
        if bits == 8 and colour in _PNG_CHANNELS:
            file = work.save("images", ".png", content)
            channels = _PNG_CHANNELS[colour]
            return work.record(
                ImageRecord, file=file, width=width, height=height, channels=channels
            )
    return _film(content, work) if content.startswith(_GIF) else _converted(content, work)


def _film(content: bytes, work: EncodeContext) -> VideoRecord:
    width, height = struct.unpack_from("<HH", content, 6)
    file = work.save("videos", ".gif", content)
    return work.record(
        VideoRecord, file=file, format="gif", fps=0.0, frames=0, width=width, height=height
    )


def _converted(content: bytes, work: EncodeContext) -> Medium:
    check_package(work.stamp.name, "PIL")
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content)) as opened:
            return _encoded(Image(opened), work)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the picture cannot be read: {error}") from error


def _encoded(medium: Text | Image, work: EncodeContext) -> Medium:
    """The record of what could as well have been logged."""
    record = medium._capture(work.stamp.name).encode(work)
    assert not isinstance(record, list)
    return record


def _sounds(value: Summary.Value) -> list[bytes]:
    if value.HasField("audio"):
        return [value.audio.encoded_audio_string]
    clips = np.atleast_1d(_array(value))
    return [bytes(one) for one in (clips[:, 0] if clips.ndim == 2 else clips).tolist()]


def _sound(content: bytes, work: EncodeContext) -> AudioRecord:
    try:
        with wave.open(io.BytesIO(content)) as opened:
            rate, channels, frames = (
                opened.getframerate(),
                opened.getnchannels(),
                opened.getnframes(),
            )
    except (wave.Error, EOFError) as error:
        raise ValueError(f"the sound is no WAV file: {error}") from error
    return work.record(
        AudioRecord,
        file=work.save("audio", ".wav", content),
        format="wav",
        sample_rate=rate,
        channels=channels,
        frames=frames,
    )

"""Decodes the values in TensorBoard summaries: scalars, histograms, images, audio, text.

Each kind has two forms. The old form has its own field (`simple_value`, `histo`, `image`, `audio`).
The new form is a tensor; the first value of a tag names the plugin that defines its meaning.
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

from metricbus._common.media_base import EncodeContext
from metricbus._common.media_records import (
    AudioRecord,
    HistogramRecord,
    ImageRecord,
    Medium,
    VideoRecord,
)
from metricbus._common.optional_imports import check_installed
from metricbus._common.records import Number
from metricbus._common.validation import to_number
from metricbus.media import Image, Text
from metricbus.media.histogram_bins import HistogramData, histogram_from_counts

if TYPE_CHECKING:
    from metricbus._compat.tensorboard import HistogramProto, Summary

PLUGINS_OF_OLD_FIELDS = {
    "simple_value": "scalars",
    "histo": "histograms",
    "image": "images",
    "audio": "audio",
}

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">8x4x4xIIBB")  # width, height, bit depth, color type
_PNG_CHANNELS = {0: 1, 2: 3, 6: 4}  # channels of gray, RGB, RGBA
_GIF = b"GIF8"
_UNBOUNDED = 1e300
"""TensorFlow writes the largest float64 for the edge of an unbounded bucket."""


def decode_scalar(value: Summary.Value) -> Number:
    """Return the number. Raises `ValueError` or `TypeError` if the value is not a number."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    return to_number(value.tag, _array(value))


def decode_media(value: Summary.Value, plugin: str, context: EncodeContext) -> list[Medium]:
    """Return the media in a value of this plugin. A value can have several images or clips.

    Raises `ValueError` if the value cannot be read.
    """
    if plugin == "histograms":
        fields = msgspec.structs.asdict(_histogram(value))
        return [context.record(HistogramRecord, **fields)]
    if plugin == "text":
        return [_text(value, context)]
    if plugin == "audio":
        return [_audio_record(content, context) for content in _audio_contents(value)]
    records = [_image_record(content, context) for content in _image_contents(value)]
    if len(records) == 1:
        return records
    return [
        msgspec.structs.replace(record, name=f"{record.name}/{number}")
        for number, record in enumerate(records)
    ]


def _array(value: Summary.Value) -> Any:
    from metricbus._compat.tensorboard import tensor_to_array

    return tensor_to_array(value.tensor)


def _text(value: Summary.Value, context: EncodeContext) -> Medium:
    parts = np.atleast_1d(_array(value)).ravel().tolist()
    text = "\n\n".join(
        part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in parts
    )
    return _encode(Text(text), context)


def _histogram(value: Summary.Value) -> HistogramData:
    if value.HasField("histo"):
        return _old_histogram(value.histo)
    buckets = np.asarray(_array(value), dtype=np.float64)
    if buckets.size == 0:
        return HistogramData([], [], 0)
    return _from_buckets(buckets.reshape(-1, 3).tolist())


def _old_histogram(histo: HistogramProto) -> HistogramData:
    """Decode buckets that end at their limits; the first, unless empty, starts at the minimum."""
    limits, counts = list(histo.bucket_limit), list(histo.bucket)
    if not any(counts):
        return HistogramData([], [], 0)
    if counts[0] == 0:
        lows, highs, counts = limits[:-1], limits[1:], counts[1:]
    else:
        lows, highs = [histo.min, *limits[:-1]], limits
    if highs[-1] > _UNBOUNDED:
        highs[-1] = max(histo.max, lows[-1])
    if lows[0] < -_UNBOUNDED:
        lows[0] = min(histo.min, highs[0])
    histogram = _from_buckets(list(zip(lows, highs, counts, strict=True)))
    return _with_statistics(histogram, histo)


def _with_statistics(histogram: HistogramData, histo: HistogramProto) -> HistogramData:
    """Replace the statistics estimated from bin centers with those stored in the file."""
    mean, mean_square = histo.sum / histogram.count, histo.sum_squares / histogram.count
    variance = max(0.0, mean_square - mean * mean)
    statistics = {
        "minimum": histo.min,
        "maximum": histo.max,
        "mean": mean,
        "std": math.sqrt(variance) if math.isfinite(mean_square) else math.nan,
        "sum": histo.sum,
        "sum_squares": histo.sum_squares,
    }
    finite = {name: value if math.isfinite(value) else None for name, value in statistics.items()}
    return msgspec.structs.replace(histogram, **finite)


def _from_buckets(buckets: Sequence[Sequence[float]]) -> HistogramData:
    """Convert buckets (low, high, count) to adjacent bins.

    Gaps become empty bins. Empty buckets without width are dropped.
    """
    edges: list[float] = []
    counts: list[int] = []
    for low, high, count in buckets:
        if high <= low:
            if not count:
                continue
            # A bucket for a single value becomes the narrowest bin around it.
            low, high = math.nextafter(low, -math.inf), math.nextafter(low, math.inf)  # noqa: PLW2901
        if edges and low > edges[-1]:
            counts.append(0)
            edges.append(low)
        edges = edges or [low]
        counts.append(round(count))
        edges.append(high)
    array = np.array(edges, dtype=np.float64)
    if not np.isfinite(array).all() or not (np.diff(array) > 0).all() or min(counts, default=0) < 0:
        raise ValueError("its edges are not finite and increasing, or a count is negative")
    return histogram_from_counts(np.array(counts, dtype=np.int64), array)


def _image_contents(value: Summary.Value) -> list[bytes]:
    if value.HasField("image"):
        return [value.image.encoded_image_string]
    # The first two elements of the tensor are the width and the height.
    return [bytes(content) for content in np.atleast_1d(_array(value)).ravel().tolist()[2:]]


def _image_record(content: bytes, context: EncodeContext) -> Medium:
    """Store a PNG unchanged, a GIF as a video, and any other format that Pillow reads as PNG."""
    if content.startswith(_PNG) and len(content) >= _PNG_HEADER.size:
        width, height, bit_depth, color_type = _PNG_HEADER.unpack_from(content)
        if bit_depth == 8 and color_type in _PNG_CHANNELS:
            file = context.save("images", ".png", content)
            channels = _PNG_CHANNELS[color_type]
            return context.record(
                ImageRecord, file=file, width=width, height=height, channels=channels
            )
    return _gif_record(content, context) if content.startswith(_GIF) else _to_png(content, context)


def _gif_record(content: bytes, context: EncodeContext) -> VideoRecord:
    width, height = struct.unpack_from("<HH", content, 6)
    file = context.save("videos", ".gif", content)
    return context.record(
        VideoRecord, file=file, format="gif", fps=0.0, frames=0, width=width, height=height
    )


def _to_png(content: bytes, context: EncodeContext) -> Medium:
    name = context.log_context.name
    check_installed("PIL", f"metric {name!r}", "'metricbus[media]'")
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            return _encode(Image(image), context)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the image cannot be read: {error}") from error


def _encode(medium: Text | Image, context: EncodeContext) -> Medium:
    """Encode a medium as if it had been logged."""
    record = medium._capture(context.log_context.name).encode(context)
    assert not isinstance(record, list)
    return record


def _audio_contents(value: Summary.Value) -> list[bytes]:
    if value.HasField("audio"):
        return [value.audio.encoded_audio_string]
    clips = np.atleast_1d(_array(value))
    # A two-dimensional tensor has a label after each clip.
    return [bytes(clip) for clip in (clips[:, 0] if clips.ndim == 2 else clips).tolist()]


def _audio_record(content: bytes, context: EncodeContext) -> AudioRecord:
    try:
        with wave.open(io.BytesIO(content)) as clip:
            rate, channels, frames = clip.getframerate(), clip.getnchannels(), clip.getnframes()
    except (wave.Error, EOFError) as error:
        raise ValueError(f"the audio is not a WAV file: {error}") from error
    return context.record(
        AudioRecord,
        file=context.save("audio", ".wav", content),
        format="wav",
        sample_rate=rate,
        channels=channels,
        frames=frames,
    )

"""The `Video` medium."""

from __future__ import annotations

import io
import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricbus._common.media_base import (
    EncodeContext,
    EncodeJob,
    MediaValue,
    check_text,
    media_path,
)
from metricbus._common.media_records import VideoRecord
from metricbus._common.optional_imports import check_installed
from metricbus.media import arrays

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_FORMATS = (".gif", ".mp4", ".webm", ".ogg", ".mov", ".avi", ".mkv")
_MAX_NUMBERS = 1 << 28
_MIN_FPS, _MAX_FPS = 0.01, 100  # a GIF stores durations in hundredths of a second
_MAX_DURATION = (1 << 16) - 1  # of one frame, in hundredths of a second
_ACCEPTED = "frames (T, H, W, C) or (T, C, H, W) as uint8 or floats from 0 to 1, or a path"


class Video(MediaValue):
    """A video: frames, or the path of a video file.

    `data` is an array, a tensor or nested lists of shape (T, H, W), (T, H, W, C) or (T, C, H, W),
    with up to 2**28 elements. The channels, dtypes and range of the pixels are those of `Image`.
    `fps`, from 0.01 to 100, is the number of frames per second.

    `log()` copies the frames, and a background thread encodes them as an animated GIF, which
    browsers and TensorBoard can show. Each color frame is reduced to 256 colors, and transparency
    is shown on black. Durations are rounded to hundredths of a second, and consecutive equal frames
    are merged into one.

    `data` can also be the path of a gif, mp4, webm, ogg, mov, avi or mkv file. A background thread
    copies the file byte for byte; do not change it until `flush()` has returned.

    Frames require Pillow: `pip install 'metricbus[media]'`. `log()` raises `TypeError` or
    `ValueError`, naming the metric, for unsupported frames, rates and files, and
    `MissingPackageError` without Pillow.
    """

    def __init__(self, data: Any, fps: float = 4.0, caption: str = "") -> None:
        self._data = data
        self._fps = fps
        self._caption = caption

    def _capture(self, name: str) -> EncodeJob:
        check_text(name, "caption=", self._caption)
        path = media_path(name, self._data, "a video file", _FORMATS)
        if path is not None:
            return EncodeJob(0, partial(_copy, path, self._caption))
        check_installed("PIL", f"metric {name!r}", "'metricbus[media]'")
        is_number = isinstance(self._fps, int | float | np.number)
        is_number = is_number and not isinstance(self._fps, bool)
        if not is_number or not _MIN_FPS <= self._fps <= _MAX_FPS:
            raise (ValueError if is_number else TypeError)(
                f"metric {name!r}: fps= must be a number from {_MIN_FPS} to {_MAX_FPS}, "
                f"not {self._fps!r}"
            )
        view = arrays.as_array(name, self._data, _ACCEPTED)
        if view.ndim not in (3, 4) or not view.size:
            raise ValueError(arrays.unexpected(name, self._data, _ACCEPTED))
        if view.size > _MAX_NUMBERS:
            raise ValueError(
                f"metric {name!r} was given {arrays.describe_array(self._data)}; frames may have "
                f"up to {_MAX_NUMBERS:,} elements in total: log a shorter video or a file's path"
            )
        frame = self._data[0] if arrays.is_tensor(self._data) else view[0]
        layout = arrays.check_layout(name, frame, view.shape[1:], None)
        arrays.check_pixels(name, self._data, view)
        copy = arrays.snapshot(view)
        frames = [arrays.channels_last(frame, layout) for frame in copy]
        return EncodeJob(copy.nbytes, partial(_encode, frames, float(self._fps), self._caption))


def _encode(
    frames: list[arrays.Array], fps: float, caption: str, context: EncodeContext
) -> VideoRecord:
    import PIL.Image

    images = []
    for frame in frames:
        pixels, repairs = arrays.to_uint8(frame)
        if repairs:
            context.warn_once(repairs)
        image = PIL.Image.fromarray(pixels)
        if image.mode == "RGBA":
            context.warn_once("videos have no transparency; it is shown on black")
            black = PIL.Image.new("RGBA", image.size, "black")
            image = PIL.Image.alpha_composite(black, image)
        images.append(image if image.mode == "L" else image.convert("RGB").quantize(256))
    first, *others = merged = _merge_equal(images, _durations(len(images), fps))
    if max(duration for _, duration in merged) > _MAX_DURATION:
        context.warn_once("frames longer than 655 seconds are shown for 655 seconds")
    content = io.BytesIO()
    first[0].save(
        content,
        "gif",
        save_all=True,
        append_images=[image for image, _ in others],
        duration=[10 * min(duration, _MAX_DURATION) for _, duration in merged],
        loop=0,
        disposal=1,
        optimize=False,
    )
    return context.record(
        VideoRecord,
        file=context.save("videos", ".gif", content.getvalue()),
        format="gif",
        fps=fps,
        frames=len(frames),
        width=first[0].width,
        height=first[0].height,
        caption=caption,
    )


def _merge_equal(images: list[PilImage], durations: list[int]) -> list[tuple[PilImage, int]]:
    """Return images and durations; consecutive equal images become one with their total."""
    merged: list[tuple[PilImage, int]] = []
    for image, duration in zip(images, durations, strict=True):
        previous = merged.pop()[1] if merged and merged[-1][0] == image else 0
        merged.append((image, previous + duration))
    return merged


def _durations(frames: int, fps: float) -> list[int]:
    """Return the frames' durations in hundredths of a second, so that rounding does not add up."""
    ends = [math.floor(number * 100 / fps + 0.5) for number in range(frames + 1)]
    return [max(1, end - start) for start, end in pairwise(ends)]


def _copy(path: Path, caption: str, context: EncodeContext) -> VideoRecord:
    return context.record(
        VideoRecord,
        file=context.copy("videos", path),
        format=path.suffix.lower().lstrip("."),
        fps=0.0,
        frames=0,
        width=0,
        height=0,
        caption=caption,
    )

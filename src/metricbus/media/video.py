"""`Video`: a film."""

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
    as_path,
    check_format,
    check_package,
    check_text,
)
from metricbus._common.media_records import VideoRecord
from metricbus.media.arrays import (
    Array,
    as_bytes,
    channels_last,
    check_layout,
    check_pixels,
    is_tensor,
    snapshot,
    told,
    view_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Pil

_FORMATS = (".gif", ".mp4", ".webm", ".ogg", ".mov", ".avi", ".mkv")
_MOST_PIXELS = 1 << 28
_LEAST_FPS, _MOST_FPS = 0.01, 100  # a GIF counts in hundredths of a second
_LONGEST_TIME = (1 << 16) - 1  # of a frame, in hundredths of a second
_ACCEPTED = "frames (T, H, W, C) or (T, C, H, W) as uint8 or floats from 0 to 1, or a path"


class Video(MediaValue):
    """A film: frames, or the path of a file.

    Frames are (T, H, W), (T, H, W, C) or (T, C, H, W), with the rules of `Image` for each of them.
    They become an animated GIF, which every browser and TensorBoard can show: 256 colours a frame,
    times in hundredths of a second, and one frame for equal ones in a row. A file (gif, mp4, webm,
    ogg, mov, avi, mkv) is copied in the background, as it is; it must stay until then.
    """

    def __init__(self, data: Any, fps: float = 4.0, caption: str = "") -> None:
        self._data = data
        self._fps = fps
        self._caption = caption

    def _capture(self, name: str) -> EncodeJob:
        """Checks and copies the frames."""
        check_text(name, "caption=", self._caption)
        path = as_path(self._data)
        if path is not None:
            check_format(name, path, "film", _FORMATS)
            return EncodeJob(0, partial(_copy, path, self._caption))
        check_package(name, "PIL")
        wrong = isinstance(self._fps, bool) or not isinstance(self._fps, int | float | np.number)
        if wrong or not _LEAST_FPS <= self._fps <= _MOST_FPS:
            raise (TypeError if wrong else ValueError)(
                f"metric {name!r}: fps= is a number from {_LEAST_FPS} to {_MOST_FPS}, "
                f"not {self._fps!r}"
            )
        view = view_of(name, self._data, _ACCEPTED)
        if view.ndim not in (3, 4) or not view.size:
            raise ValueError(f"metric {name!r} was given {told(self._data)}; it takes {_ACCEPTED}")
        if view.size > _MOST_PIXELS:
            raise ValueError(
                f"metric {name!r} was given {told(self._data)}; up to {_MOST_PIXELS:,} pixels in "
                "all are taken: log a shorter film, or a file"
            )
        frame = self._data[0] if is_tensor(self._data) else view[0]
        layout = check_layout(name, frame, view.shape[1:], None)
        check_pixels(name, self._data, view)
        copy = snapshot(view)
        frames = [channels_last(one, layout) for one in copy]
        return EncodeJob(copy.nbytes, partial(_encode, frames, float(self._fps), self._caption))


def _encode(frames: list[Array], fps: float, caption: str, work: EncodeContext) -> VideoRecord:
    import PIL.Image

    pictures = []
    for frame in frames:
        pixels, mended = as_bytes(frame)
        if mended:
            work.tell(mended)
        picture = PIL.Image.fromarray(pixels)
        if picture.mode == "RGBA":
            work.tell("a film has no transparency: it is shown on black")
            picture = PIL.Image.alpha_composite(
                PIL.Image.new("RGBA", picture.size, "black"), picture
            )
        pictures.append(picture if picture.mode == "L" else picture.convert("RGB").quantize(256))
    first, *others = shown = _joined(pictures, _hundredths(len(pictures), fps))
    if max(time for _, time in shown) > _LONGEST_TIME:
        work.tell("a frame that stands for more than 655 seconds is shown for so long")
    content = io.BytesIO()
    first[0].save(
        content,
        "gif",
        save_all=True,
        append_images=[picture for picture, _ in others],
        duration=[10 * min(time, _LONGEST_TIME) for _, time in shown],
        loop=0,
        disposal=1,
        optimize=False,
    )
    return work.record(
        VideoRecord,
        file=work.save("videos", ".gif", content.getvalue()),
        format="gif",
        fps=fps,
        frames=len(frames),
        width=first[0].width,
        height=first[0].height,
        caption=caption,
    )


def _joined(pictures: list[Pil], times: list[int]) -> list[tuple[Pil, int]]:
    """The pictures with their times; of equal ones in a row one, with all their time."""
    joined: list[tuple[Pil, int]] = []
    for picture, time in zip(pictures, times, strict=True):
        before = joined.pop()[1] if joined and joined[-1][0] == picture else 0
        joined.append((picture, before + time))
    return joined


def _hundredths(frames: int, fps: float) -> list[int]:
    """How long each frame is shown, so that the whole film is right to a hundredth of a second."""
    ends = [math.floor(number * 100 / fps + 0.5) for number in range(frames + 1)]
    return [max(1, end - start) for start, end in pairwise(ends)]


def _copy(path: Path, caption: str, work: EncodeContext) -> VideoRecord:
    return work.record(
        VideoRecord,
        file=work.copy("videos", path),
        format=path.suffix.lower().lstrip("."),
        fps=0.0,
        frames=0,
        width=0,
        height=0,
        caption=caption,
    )

"""Pictures on their way into PNG files: in the background, of what `Image` has copied."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from metricbus._common.media_base import EncodeContext
from metricbus._common.media_records import Box, FileRef, ImageRecord, Picture
from metricbus.media.annotations import Marks
from metricbus.media.arrays import MOST_PIXELS, Array, as_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as Pil

Source: TypeAlias = "Array | Path | Pil"

_PLAIN_MODES = ("L", "RGB", "RGBA")
_UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_GAP = 2  # pixels between the pictures of a grid
_LARGEST_CLASS = 65_535
_PNG_LEVEL = 3  # of deflate: half the time of the default, files some percent larger


def size_of(source: Source) -> tuple[int, int] | None:
    """Width and height; None of a file that was not opened yet."""
    if isinstance(source, Path):
        return None
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    return source.size


def nbytes_of(source: Source) -> int:
    """About how much memory it takes while it waits."""
    if isinstance(source, np.ndarray):
        return source.nbytes
    size = size_of(source)
    return 4 * size[0] * size[1] if size else 0


def check_size(name: str, size: tuple[int, int]) -> None:
    """`ValueError` for a picture without pixels, or with too many."""
    width, height = size
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(
            f"metric {name!r} was given a picture of {width:,} x {height:,}; from 1 to "
            f"{MOST_PIXELS:,} pixels are taken"
        )


def encode(
    sources: Sequence[Source], columns: int, caption: str, marks: Marks, work: EncodeContext
) -> ImageRecord:
    """One picture, or a grid if there are `columns`, with what is to be seen on it."""
    picture = _picture(sources, columns, work)
    file = work.save("images", ".png", png_of(picture))
    masks, arrays = {}, {}
    for key, mask in marks.masks.items():
        if mask.shape != (picture.height, picture.width):
            raise ValueError(f"the mask {key!r} is not as large as the picture")
        masks[key], arrays[key] = _save_mask(key, mask, work), mask
    boxes = [_in_pixels(box, picture.width, picture.height) for box in marks.boxes]
    annotated = None
    if boxes or masks:
        from metricbus.media.draw_annotations import annotate

        drawn = annotate(picture, boxes, arrays, marks.labels)
        annotated = work.save("images", ".annotated.png", png_of(drawn))
    return work.record(
        ImageRecord,
        file=file,
        width=picture.width,
        height=picture.height,
        channels=len(picture.getbands()),
        caption=caption,
        boxes=boxes,
        masks=masks,
        class_labels=dict(marks.labels),
        annotated=annotated,
    )


def encode_cell(
    sources: Sequence[Source], columns: int, caption: str, work: EncodeContext
) -> Picture:
    """The same as a table's cell."""
    picture = _picture(sources, columns, work)
    file = work.save("tables", ".png", png_of(picture))
    return Picture(file, picture.width, picture.height, len(picture.getbands()), caption)


def png_of(picture: Pil) -> bytes:
    """The picture as PNG, without loss."""
    content = io.BytesIO()
    picture.save(content, "png", compress_level=_PNG_LEVEL)
    return content.getvalue()


def _picture(sources: Sequence[Source], columns: int, work: EncodeContext) -> Pil:
    pictures = [_load(source, work) for source in sources]
    return _grid(pictures, columns) if columns else pictures[0]


def _load(source: Source, work: EncodeContext) -> Pil:
    import PIL.Image

    if isinstance(source, np.ndarray):
        pixels, mended = as_bytes(source)
        if mended:
            work.tell(mended)
        return PIL.Image.fromarray(pixels)
    if isinstance(source, Path):
        source = _open(source, work)
    if source.mode in _PLAIN_MODES:
        return source
    if source.mode == "1":
        return source.convert("L")
    if source.mode in _UNMULTIPLIED:
        source = source.convert(_UNMULTIPLIED[source.mode])
    has_alpha = source.mode in ("LA", "PA", "RGBA") or "transparency" in source.info
    if source.mode not in ("P", "LA", "PA", "RGBA"):
        work.tell(f"a picture of the mode {source.mode} is converted to 8 bits a channel")
    if source.mode in ("F", "I") or source.mode.startswith("I;16"):
        return _stretched(source)
    converted = source.convert("RGBA" if has_alpha else "RGB")
    if source.mode != "P":
        converted.info.pop("icc_profile", None)  # that of other channels
    return converted


def _open(path: Path, work: EncodeContext) -> Pil:
    """The picture in a file; `ValueError` whatever is wrong with it: to try again is no use."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as opened:
            check_size(work.stamp.name, opened.size)
            opened.load()
            return opened.copy()
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _stretched(picture: Pil) -> Pil:
    """Grey levels of more than 8 bits: the darkest becomes 0, the lightest 255."""
    import PIL.Image

    pixels = np.asarray(picture).astype(np.float64)
    finite = pixels[np.isfinite(pixels)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    pixels = np.nan_to_num(pixels, nan=low, posinf=high, neginf=low)
    scaled = (pixels - low) / (high - low or 1.0) * 255
    return PIL.Image.fromarray(np.rint(scaled).astype(np.uint8))


def _grid(pictures: Sequence[Pil], columns: int) -> Pil:
    import PIL.Image

    modes = {picture.mode for picture in pictures}
    mode = next(mode for mode in reversed(_PLAIN_MODES) if mode in modes)
    width = max(picture.width for picture in pictures) + _GAP
    height = max(picture.height for picture in pictures) + _GAP
    rows = math.ceil(len(pictures) / columns)
    size = columns * width - _GAP, rows * height - _GAP
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"a grid of {size[0]:,} x {size[1]:,} pixels is too large")
    grid = PIL.Image.new(mode, size)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        grid.paste(picture.convert(mode), (column * width, row * height))
    return grid


def _save_mask(key: str, mask: Array, work: EncodeContext) -> FileRef:
    import PIL.Image

    if mask.min() < 0 or mask.max() > _LARGEST_CLASS:
        raise ValueError(f"the mask {key!r} has classes outside of 0 to {_LARGEST_CLASS:,}")
    kind = np.uint8 if mask.max() < 256 else np.uint16
    return work.save("images", ".mask.png", png_of(PIL.Image.fromarray(mask.astype(kind))))


def _in_pixels(box: Box, width: int, height: int) -> Box:
    if not box.fractions:
        return box
    return msgspec.structs.replace(
        box,
        left=box.left * width,
        top=box.top * height,
        right=box.right * width,
        bottom=box.bottom * height,
        fractions=False,
    )

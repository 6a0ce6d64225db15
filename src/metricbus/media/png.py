"""Encoding of captured images as PNG files, on the media worker's thread."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from metricbus._common.media_base import EncodeContext
from metricbus._common.media_records import Box, FileRef, ImageCell, ImageRecord
from metricbus.media.annotations import Annotations
from metricbus.media.arrays import MAX_PIXELS, Array, check_size, to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Source: TypeAlias = "Array | Path | PilImage"

_PNG_MODES = ("L", "RGB", "RGBA")
_UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_GAP = 2  # pixels between the images of a grid
_MAX_CLASS = 65_535
_PNG_LEVEL = 3  # takes half the time of the default level, for slightly larger files


def size_of(source: Source) -> tuple[int, int] | None:
    """Return the width and height in pixels; None for a file, which is read later."""
    if isinstance(source, Path):
        return None
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    return source.size


def nbytes_of(source: Source) -> int:
    """Return the approximate number of bytes in memory."""
    if isinstance(source, np.ndarray):
        return source.nbytes
    size = size_of(source)
    return 4 * size[0] * size[1] if size else 0


def encode(
    sources: Sequence[Source],
    columns: int,
    caption: str,
    annotations: Annotations,
    context: EncodeContext,
) -> ImageRecord:
    """Encode one image, or a grid if `columns` is not 0."""
    image = _compose(sources, columns, context)
    file = context.save("images", ".png", png_of(image))
    masks = {}
    for key, mask in annotations.masks.items():
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"the mask {key!r} is {mask.shape[1]} x {mask.shape[0]}, but its image is "
                f"{image.width} x {image.height}"
            )
        masks[key] = _save_mask(key, mask, context)
    boxes = [_in_pixels(box, image.width, image.height) for box in annotations.boxes]
    annotated = None
    if boxes or masks:
        from metricbus.media.draw_annotations import annotate

        drawn = annotate(image, boxes, annotations.masks, annotations.labels)
        annotated = context.save("images", ".annotated.png", png_of(drawn))
    return context.record(
        ImageRecord,
        file=file,
        width=image.width,
        height=image.height,
        channels=len(image.getbands()),
        caption=caption,
        boxes=boxes,
        masks=masks,
        class_labels=dict(annotations.labels),
        annotated=annotated,
    )


def encode_cell(
    sources: Sequence[Source], columns: int, caption: str, context: EncodeContext
) -> ImageCell:
    """Encode one image, or a grid, as a table cell."""
    image = _compose(sources, columns, context)
    file = context.save("tables", ".png", png_of(image))
    return ImageCell(file, image.width, image.height, len(image.getbands()), caption)


def png_of(image: PilImage) -> bytes:
    """Return the image as a PNG, losslessly."""
    content = io.BytesIO()
    image.save(content, "png", compress_level=_PNG_LEVEL)
    return content.getvalue()


def _compose(sources: Sequence[Source], columns: int, context: EncodeContext) -> PilImage:
    images = [_load(source, context) for source in sources]
    return _grid(images, columns) if columns else images[0]


def _load(source: Source, context: EncodeContext) -> PilImage:
    """Return the image in a mode that PNG files have, with 8 bits per channel."""
    import PIL.Image

    if isinstance(source, np.ndarray):
        pixels, repairs = to_uint8(source)
        if repairs:
            context.warn_once(repairs)
        return PIL.Image.fromarray(pixels)
    image = _open(source, context) if isinstance(source, Path) else source
    if image.mode in _PNG_MODES:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in _UNMULTIPLIED:
        image = image.convert(_UNMULTIPLIED[image.mode])
    has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if image.mode not in ("P", "LA", "PA", "RGBA"):
        context.warn_once(f"an image of mode {image.mode} is converted to 8 bits per channel")
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _stretch(image)
    converted = image.convert("RGBA" if has_alpha else "RGB")
    if image.mode != "P":
        converted.info.pop("icc_profile", None)  # it applies to the original's channels
    return converted


def _open(path: Path, context: EncodeContext) -> PilImage:
    """Read an image file; raise `ValueError` for any error, so that the worker does not retry."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            check_size(context.log_context.name, image.size)
            image.load()
            return image.copy()
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _stretch(image: PilImage) -> PilImage:
    """Scale gray levels of more than 8 bits linearly: the darkest to 0, the lightest to 255."""
    import PIL.Image

    pixels = np.asarray(image).astype(np.float64)
    finite = pixels[np.isfinite(pixels)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    pixels = np.nan_to_num(pixels, nan=low, posinf=high, neginf=low)
    scaled = (pixels - low) / (high - low or 1.0) * 255
    return PIL.Image.fromarray(np.rint(scaled).astype(np.uint8))


def _grid(images: Sequence[PilImage], columns: int) -> PilImage:
    import PIL.Image

    modes = {image.mode for image in images}
    mode = next(mode for mode in reversed(_PNG_MODES) if mode in modes)
    width = max(image.width for image in images) + _GAP
    height = max(image.height for image in images) + _GAP
    rows = math.ceil(len(images) / columns)
    size = columns * width - _GAP, rows * height - _GAP
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"the grid has {size[0]:,} x {size[1]:,} pixels; the maximum is {MAX_PIXELS:,} in total"
        )
    grid = PIL.Image.new(mode, size)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        grid.paste(image.convert(mode), (column * width, row * height))
    return grid


def _save_mask(key: str, mask: Array, context: EncodeContext) -> FileRef:
    import PIL.Image

    if mask.min() < 0 or mask.max() > _MAX_CLASS:
        raise ValueError(f"the mask {key!r} has classes outside 0 to {_MAX_CLASS:,}")
    dtype = np.uint8 if mask.max() < 256 else np.uint16
    return context.save("images", ".mask.png", png_of(PIL.Image.fromarray(mask.astype(dtype))))


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

"""Drawing of boxes and masks onto an image, for backends that cannot show them separately."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from metricbus._common.media_records import Box
from metricbus.media.arrays import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_GOLDEN_RATIO = 0.618033988749895  # multiples of it, modulo 1, are hues that are easy to tell apart
_OPACITY = 0.45


def annotate(
    image: Image, boxes: Sequence[Box], masks: Mapping[str, Array], labels: Mapping[int, str]
) -> Image:
    """Return the image in RGB, with the masks blended in and the boxes drawn on top.

    Class 0 of a mask is the background and is not drawn. `labels` maps class numbers to names.
    """
    import PIL.Image
    from PIL.ImageDraw import Draw

    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    for mask in masks.values():
        for number in np.unique(mask[mask > 0]).tolist():
            region = mask == number
            pixels[region] = pixels[region] * (1 - _OPACITY) + np.array(_color(number)) * _OPACITY
    annotated = PIL.Image.fromarray(np.rint(pixels).astype(np.uint8))
    draw = Draw(annotated)
    classes: dict[str, int] = {label: number for number, label in labels.items()}
    line_width = max(1, round(max(annotated.size) / 300))
    for box in boxes:
        number = (
            box.label
            if isinstance(box.label, int)
            else classes.setdefault(str(box.label), len(classes) + 1)
        )
        left, top, right, bottom = _clip(box, annotated.size, line_width + 1)
        draw.rectangle((left, top, right, bottom), outline=_color(number), width=line_width)
        if text := _box_text(box, labels):
            draw.text((left + 2, top + 1), text, fill=_color(number))
    return annotated


def _box_text(box: Box, labels: Mapping[int, str]) -> str:
    """Return the text at a box: its caption, or else its class, and its score."""
    name = labels.get(box.label, str(box.label)) if isinstance(box.label, int) else box.label
    text = box.caption or name or ""
    return text if box.score is None else f"{text} {box.score:.2f}".strip()


def _clip(box: Box, size: tuple[int, int], margin: int) -> tuple[float, float, float, float]:
    """Return the sides of a box, clipped just outside the image to bound the cost of drawing."""
    max_x, max_y = size[0] + margin, size[1] + margin
    left, right = (min(max(side, -margin), max_x) for side in (box.left, box.right))
    top, bottom = (min(max(side, -margin), max_y) for side in (box.top, box.bottom))
    return left, top, right, bottom


def _color(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)

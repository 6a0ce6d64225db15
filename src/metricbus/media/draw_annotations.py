"""Boxes and masks drawn onto a picture, for who has no layers of their own for them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from metricbus._common.media_records import Box
from metricbus.media.arrays import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_GOLDEN = 0.618033988749895  # steps of it around the circle of hues stay apart
_OPACITY = 0.45


def annotate(
    picture: Image, boxes: Sequence[Box], masks: Mapping[str, Array], labels: Mapping[int, str]
) -> Image:
    """The picture in colour, with the masks over it (0 is no class) and the boxes around things."""
    import PIL.Image
    from PIL.ImageDraw import Draw

    pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    for mask in masks.values():
        for number in np.unique(mask[mask > 0]).tolist():
            where = mask == number
            pixels[where] = pixels[where] * (1 - _OPACITY) + np.array(_colour(number)) * _OPACITY
    drawn = PIL.Image.fromarray(np.rint(pixels).astype(np.uint8))
    pen = Draw(drawn)
    known: dict[str, int] = {label: number for number, label in labels.items()}
    for box in boxes:
        text = caption_of(box, labels)
        key = (
            box.label
            if isinstance(box.label, int)
            else known.setdefault(str(box.label), len(known) + 1)
        )
        colour = _colour(key)
        width = max(1, round(max(drawn.size) / 300))
        left, top, right, bottom = _within(box, drawn.size, width + 1)
        pen.rectangle((left, top, right, bottom), outline=colour, width=width)
        if text:
            pen.text((left + 2, top + 1), text, fill=colour)
    return drawn


def caption_of(box: Box, labels: Mapping[int, str]) -> str:
    """What stands at a box: its caption, or its class; and its score."""
    name = labels.get(box.label, str(box.label)) if isinstance(box.label, int) else box.label
    text = box.caption or name or ""
    return text if box.score is None else f"{text} {box.score:.2f}".strip()


def _within(box: Box, size: tuple[int, int], beyond: int) -> tuple[float, float, float, float]:
    """The sides of a box; what is far out of the picture stays just out of it, to cost nothing."""
    most_x, most_y = size[0] + beyond, size[1] + beyond
    left, right = (min(max(side, -beyond), most_x) for side in (box.left, box.right))
    top, bottom = (min(max(side, -beyond), most_y) for side in (box.top, box.bottom))
    return left, top, right, bottom


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)

"""Validation and copying of an image's boxes, masks and class labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from metricbus._common.media_base import check_text
from metricbus._common.media_records import Box
from metricbus._common.validation import INT_MAX, INT_MIN, to_number
from metricbus.media.arrays import Array, as_array, describe_array, snapshot


class Annotations(NamedTuple):
    """Validated annotations of one image."""

    boxes: Sequence[Box] = ()
    masks: Mapping[str, Array] = {}
    labels: Mapping[int, str] = {}


class AnnotationArguments(NamedTuple):
    """The annotations as the user passed them, not yet validated."""

    boxes: Any
    masks: Any
    labels: Any

    def has_any(self, name: str) -> bool:
        """Check whether there are boxes or masks; raise `TypeError` for unsupported containers."""
        if isinstance(self.boxes, str) or not isinstance(self.boxes, Sequence):
            raise TypeError(
                f"metric {name!r}: boxes= must be a list of Box objects or dicts, not "
                f"{describe_array(self.boxes)}"
            )
        for argument, value in (("masks=", self.masks), ("class_labels=", self.labels)):
            if not isinstance(value, Mapping):
                raise TypeError(
                    f"metric {name!r}: {argument} must be a dict, not {describe_array(value)}"
                )
        return bool(self.boxes or self.masks)

    def capture(self, name: str, size: tuple[int, int] | None) -> Annotations:
        """Validate and copy the annotations of an image of this (width, height), if known."""
        if not (self.boxes or self.masks or self.labels):
            return Annotations()
        boxes = [_check_box(name, box) for box in self.boxes]
        masks = {
            check_text(name, "a mask's name", key): _check_mask(name, key, mask, size)
            for key, mask in self.masks.items()
        }
        labels = {}
        for number, label in self.labels.items():
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                raise TypeError(
                    f"metric {name!r}: class_labels= must map class numbers to names; {number!r} "
                    "is not an integer"
                )
            _check_class(name, int(number))
            labels[int(number)] = check_text(name, "a class's name", label)
        return Annotations(boxes, masks, labels)


def _check_box(name: str, given: Box | Mapping[str, Any]) -> Box:
    try:
        fields = dict(given) if isinstance(given, Mapping) else msgspec.structs.asdict(given)
        if unknown := fields.keys() - set(Box.__struct_fields__):
            raise TypeError(f"a box has no field {min(map(str, unknown))!r}")
        plain = {
            key: to_number(name, value) if hasattr(value, "item") else value
            for key, value in fields.items()
        }
        box = msgspec.convert(plain, Box, strict=True)
    except (msgspec.ValidationError, TypeError) as error:
        raise TypeError(
            f"metric {name!r}: {given!r:.80} is not a valid box ({error}); expected "
            "Box(left, top, right, bottom, label=, score=, caption=, fractions=)"
        ) from None
    sides = box.left, box.top, box.right, box.bottom
    if not all(map(math.isfinite, sides)) or box.left > box.right or box.top > box.bottom:
        raise ValueError(
            f"metric {name!r}: {given!r:.120} is not a valid box; its sides must be finite, with "
            "left <= right and top <= bottom"
        )
    if box.fractions and not (min(sides) >= 0 and max(sides) <= 1):
        raise ValueError(
            f"metric {name!r}: {given!r:.120} is not a valid box; fractions must be from 0 to 1"
        )
    if box.score is not None and not math.isfinite(box.score):
        raise ValueError(f"metric {name!r}: the score of a box must be finite, not {box.score}")
    check_text(name, "the caption of a box", box.caption)
    if isinstance(box.label, int):
        _check_class(name, box.label)
    elif box.label is not None:
        check_text(name, "the label of a box", box.label)
    return box


def _check_class(name: str, number: int) -> None:
    if not INT_MIN <= number <= INT_MAX:
        raise ValueError(f"metric {name!r}: a class must be a 64-bit integer, not {number}")


def _check_mask(name: str, key: str, mask: Any, size: tuple[int, int] | None) -> Array:
    view = as_array(name, mask, "masks= as arrays of class numbers")
    if view.dtype.kind not in "biu" or view.ndim != 2:
        raise TypeError(
            f"metric {name!r}: the mask {key!r} is {describe_array(mask)}; expected integers with "
            "two axes"
        )
    height, width = view.shape
    if size is not None and (width, height) != size:
        raise ValueError(
            f"metric {name!r}: the mask {key!r} is {width} x {height}, but its image is "
            f"{size[0]} x {size[1]}"
        )
    return snapshot(view)

"""Boxes and masks on a picture: checked, and copied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from metricbus._common.media_base import check_text
from metricbus._common.media_records import Box
from metricbus._common.validation import INT_MAX, INT_MIN, to_number
from metricbus.media.arrays import Array, snapshot, told, view_of


class Marks(NamedTuple):
    """What is shown on a picture."""

    boxes: Sequence[Box]
    masks: Mapping[str, Array]
    labels: Mapping[int, str]


_NONE = Marks((), {}, {})


class GivenMarks(NamedTuple):
    """The same as the user gave it."""

    boxes: Any
    masks: Any
    labels: Any

    def are_some(self, name: str) -> bool:
        """Whether there are any; `TypeError` for what cannot be."""
        if isinstance(self.boxes, str) or not isinstance(self.boxes, Sequence):
            raise TypeError(
                f"metric {name!r}: boxes= is a list of Box(…) or of dicts, not {told(self.boxes)}"
            )
        for what, given in (("masks=", self.masks), ("class_labels=", self.labels)):
            if not isinstance(given, Mapping):
                raise TypeError(f"metric {name!r}: {what} is a dict, not {told(given)}")
        return bool(self.boxes or self.masks)

    def take(self, name: str, size: tuple[int, int] | None) -> Marks:
        """Checks and copies them, for a picture of this width and height, if they are known."""
        if not (self.boxes or self.masks or self.labels):
            return _NONE
        boxes = [_check_box(name, box) for box in self.boxes]
        masks = {
            check_text(name, "a mask's name", key): _check_mask(name, key, mask, size)
            for key, mask in self.masks.items()
        }
        labels = {}
        for number, label in self.labels.items():
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                raise TypeError(
                    f"metric {name!r}: class_labels= has names by class number, not by {number!r}"
                )
            _check_class(name, int(number))
            labels[int(number)] = check_text(name, "a class's name", label)
        return Marks(boxes, masks, labels)


def _check_box(name: str, given: Box | Mapping[str, Any]) -> Box:
    try:
        fields = dict(given) if isinstance(given, Mapping) else msgspec.structs.asdict(given)
        if unknown := fields.keys() - set(Box.__struct_fields__):
            raise TypeError(f"it has no field {min(map(str, unknown))!r}")
        plain = {
            key: to_number(name, value) if hasattr(value, "item") else value
            for key, value in fields.items()
        }
        box = msgspec.convert(plain, Box, strict=True)
    except (msgspec.ValidationError, TypeError) as error:
        raise TypeError(
            f"metric {name!r}: {given!r:.80} is no box ({error}); write "
            "Box(left, top, right, bottom, label=, score=, caption=, fractions=)"
        ) from None
    sides = box.left, box.top, box.right, box.bottom
    if not all(map(math.isfinite, sides)) or box.left > box.right or box.top > box.bottom:
        raise ValueError(
            f"metric {name!r}: {given!r:.120} is no box: left <= right, top <= bottom, finite"
        )
    if box.fractions and not (min(sides) >= 0 and max(sides) <= 1):
        raise ValueError(f"metric {name!r}: {given!r:.120} has sides outside of 0 to 1")
    if box.score is not None and not math.isfinite(box.score):
        raise ValueError(f"metric {name!r}: the score of a box is finite, not {box.score}")
    check_text(name, "the caption of a box", box.caption)
    if isinstance(box.label, int):
        _check_class(name, box.label)
    elif box.label is not None:
        check_text(name, "the label of a box", box.label)
    return box


def _check_class(name: str, number: int) -> None:
    if not INT_MIN <= number <= INT_MAX:
        raise ValueError(f"metric {name!r}: a class is a number of 64 bits, not {number}")


def _check_mask(name: str, key: str, mask: Any, size: tuple[int, int] | None) -> Array:
    view = view_of(name, mask, "masks= as arrays of class numbers")
    if view.dtype.kind not in "biu" or view.ndim != 2:
        raise TypeError(
            f"metric {name!r}: the mask {key!r} is {told(mask)}; it has whole numbers, and two axes"
        )
    if size is not None and (view.shape[1], view.shape[0]) != size:
        raise ValueError(
            f"metric {name!r}: the mask {key!r} is {view.shape[1]} x {view.shape[0]}, its picture "
            f"{size[0]} x {size[1]}"
        )
    return snapshot(view)

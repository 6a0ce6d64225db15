"""`Image`: a picture or a grid of them, with boxes and masks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from metricbus._common.media_base import (
    EncodeJob,
    MediaValue,
    as_path,
    check_file,
    check_package,
    check_text,
)
from metricbus._common.media_records import Box
from metricbus.media.annotations import GivenMarks
from metricbus.media.arrays import (
    MOST_PIXELS,
    Array,
    Layout,
    channels_last,
    check_layout,
    check_pixels,
    is_tensor,
    snapshot,
    view_of,
)
from metricbus.media.png import Source, check_size, encode, encode_cell, nbytes_of, size_of

if TYPE_CHECKING:
    from PIL.Image import Image as Pil

_ACCEPTED = (
    "an array or tensor of pixels, a PIL image, a path, a matplotlib figure, or a list of these"
)


class Image(MediaValue):
    """A picture: an array or tensor, a PIL image, a path, a matplotlib figure; or a list of these.

    Arrays have height and width, and 1, 3 or 4 channels last or first: with three axes, the one of
    such a length is the channels'; where both could be, it is the first of a tensor and the last of
    an array. `layout="HW" | "HWC" | "CHW"` says it outright. Pixels are uint8, bool, or floats from
    0 to 1; what is outside is clipped, NaN becomes 0, and both are told once.

    Lists, and arrays with one axis more, become a grid of `columns` columns (about a square without
    it), each cell as large as the largest, black where nothing is.

    `boxes` are `Box` objects or dicts of their fields. `masks` are arrays of class numbers (0 to
    65,535) by name, of the picture's height and width, `class_labels` the classes' names.

    The call copies the pixels; a PNG is made of them in the background, once for all sinks. A
    figure is drawn at the call, because it may change afterwards, and stays open unless
    `close=True`.
    """

    def __init__(
        self,
        data: Any,
        caption: str = "",
        *,
        boxes: Sequence[Box | Mapping[str, Any]] | None = None,
        masks: Mapping[str, Any] | None = None,
        class_labels: Mapping[int, str] | None = None,
        layout: Layout | None = None,
        columns: int | None = None,
        close: bool = False,
    ) -> None:
        self._data = data
        self.caption = caption
        self._marks = GivenMarks(
            () if boxes is None else boxes,
            {} if masks is None else masks,
            {} if class_labels is None else class_labels,
        )
        self._layout = layout
        self._columns = columns
        self._close = close

    def _capture(self, name: str) -> EncodeJob:
        """Checks and copies the pixels."""
        sources, is_grid = self._sources(name)
        if self._marks.are_some(name) and is_grid:
            raise ValueError(f"metric {name!r}: a grid has no boxes and masks; log one picture")
        marks = self._marks.take(name, size_of(sources[0]))
        nbytes = sum(map(nbytes_of, sources)) + sum(mask.nbytes for mask in marks.masks.values())
        columns = self._check_columns(name, len(sources)) if is_grid else 0
        encoded = partial(encode, sources, columns, self.caption, marks)
        return EncodeJob(nbytes, encoded, self._close_figures)

    def _take_cell(self, name: str) -> tuple[int, Any]:
        """The same for a picture in a table: about how many bytes, and what makes the cell."""
        if self._marks.are_some(name):
            raise ValueError(
                f"metric {name!r}: a picture in a table has no boxes and masks; log it alone"
            )
        sources, is_grid = self._sources(name)
        columns = self._check_columns(name, len(sources)) if is_grid else 0
        nbytes = sum(map(nbytes_of, sources))
        self._close_figures()
        return nbytes, partial(encode_cell, sources, columns, self.caption)

    def _sources(self, name: str) -> tuple[list[Source], bool]:
        check_package(name, "PIL")
        check_text(name, "caption=", self.caption)
        data = self._data
        many = isinstance(data, list | tuple) and not _is_nested_numbers(data)
        if not many and getattr(data, "ndim", 0) == 4:
            many = True
        if not many:
            return [self._source(name, data)], False
        if not len(data):
            raise ValueError(
                f"metric {name!r} was given no picture; what is accepted is {_ACCEPTED}"
            )
        sources: list[Source] = []
        pixels = 0
        for one in data:
            sources.append(self._source(name, one))
            pixels += math.prod(size_of(sources[-1]) or ())
            if pixels > MOST_PIXELS:  # before the next one is copied
                raise ValueError(
                    f"metric {name!r} was given a grid of {len(data):,} pictures with more than "
                    f"{MOST_PIXELS:,} pixels in all: log fewer, or smaller ones"
                )
        return sources, True

    def _source(self, name: str, data: Any) -> Source:
        path = as_path(data)
        if path is not None:
            check_file(name, path)
            return path
        if _is_a("PIL.Image", "Image", data):
            check_size(name, data.size)
            try:
                copied: Pil = data.copy()
            except Exception as error:  # a file that is read only now, or one that was closed
                raise ValueError(f"metric {name!r}: the picture cannot be read: {error}") from error
            return copied
        if _is_a("matplotlib.figure", "Figure", data):
            return _draw_figure(name, data)
        view = view_of(name, data, _ACCEPTED)
        layout = check_layout(name, data if is_tensor(data) else view, view.shape, self._layout)
        check_pixels(name, data, view)
        return channels_last(snapshot(view), layout)

    def _check_columns(self, name: str, pictures: int) -> int:
        if self._columns is None:
            return math.ceil(math.sqrt(pictures))
        if type(self._columns) is not int or self._columns < 1:
            raise ValueError(
                f"metric {name!r}: columns= is a whole number from 1 on, not {self._columns!r}"
            )
        return min(self._columns, pictures)

    def _close_figures(self) -> None:
        """Closes pyplot's figures, if that was asked for."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if not self._close or pyplot is None:
            return
        for one in self._data if isinstance(self._data, list | tuple) else [self._data]:
            if _is_a("matplotlib.figure", "Figure", one):
                pyplot.close(one)


def _is_nested_numbers(data: Sequence[Any]) -> bool:
    """Whether a list is an array that was written out, rather than a list of pictures."""
    inner = data[0] if len(data) else None
    while isinstance(inner, list | tuple) and inner:
        inner = inner[0]
    return isinstance(inner, int | float | np.generic)


def _is_a(module: str, kind: str, data: object) -> bool:
    """Whether it is of a class of a package that need not be imported to find that out."""
    found = sys.modules.get(module)
    return isinstance(data, getattr(found, kind, ()))  # a module may be half imported


def _draw_figure(name: str, figure: Any) -> Array:
    """The figure's pixels; its canvas stays the one it has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    canvas = FigureCanvasAgg(figure)
    try:
        check_size(name, canvas.get_width_height())
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.array(canvas.buffer_rgba(), copy=True)  # type: ignore[no-untyped-call]
    except Exception as error:  # a bad formula in a title, say
        raise ValueError(f"metric {name!r}: the figure cannot be drawn: {error}") from error
    finally:
        figure.set_canvas(before)
    return pixels

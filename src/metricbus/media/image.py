"""The `Image` medium: an image or a grid of images, with boxes and masks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from metricbus._common.media_base import EncodeJob, MediaValue, check_text, media_path
from metricbus._common.media_records import Box
from metricbus._common.optional_imports import check_installed
from metricbus.media import arrays
from metricbus.media.annotations import AnnotationArguments
from metricbus.media.png import Source, encode, encode_cell, nbytes_of, size_of

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_ACCEPTED = (
    "an array or tensor of pixels, a PIL image, a path, a matplotlib figure, or a list of these"
)


class Image(MediaValue):
    """An image, or a grid of images, with an optional caption, boxes and masks.

    `data` is an array, a tensor, nested lists of pixels, a PIL image, the path of an image file, or
    a matplotlib figure. A list of these, or an array with four axes, becomes a grid.

    Arrays have shape (H, W), (H, W, C) or (C, H, W), with 1, 3 or 4 channels. With three
    axes, the first or the last is the channel axis, whichever has length 1, 3 or 4. If both have,
    the first is used for tensors and the last for arrays; `layout`, one of "HW", "HWC" and "CHW",
    overrides this. Pixels are uint8, bool, or floats from 0 to 1. Floats outside this range are
    clipped and NaN becomes 0; a warning reports this once per metric. An image, or all images of a
    grid together, may have up to 67,108,864 pixels.

    `boxes` is a list of `Box` objects or of dicts with their fields. `masks` maps names to integer
    arrays of shape (H, W) whose elements are class numbers from 0 to 65,535. `class_labels` maps
    class numbers to names. A grid cannot have boxes or masks.

    `columns` is the number of columns of a grid; by default, the grid is about square. All cells
    are as large as the largest image; the rest of a cell is black.

    `log()` copies the pixels, and a background thread encodes them as a PNG, which all sinks share.
    A figure is drawn within the call, and stays open unless `close=True`. An image file is read in
    the background; do not change it until `flush()` has returned.

    Requires Pillow, and matplotlib for figures: `pip install 'metricbus[media]'`. `log()` raises
    `TypeError` or `ValueError`, naming the metric, for unsupported data, shapes, dtypes and
    annotations, and `MissingPackageError` without Pillow.
    """

    def __init__(
        self,
        data: Any,
        caption: str = "",
        *,
        boxes: Sequence[Box | Mapping[str, Any]] | None = None,
        masks: Mapping[str, Any] | None = None,
        class_labels: Mapping[int, str] | None = None,
        layout: arrays.Layout | None = None,
        columns: int | None = None,
        close: bool = False,
    ) -> None:
        self._data = data
        self.caption = caption
        self._annotations = AnnotationArguments(
            () if boxes is None else boxes,
            {} if masks is None else masks,
            {} if class_labels is None else class_labels,
        )
        self._layout = layout
        self._columns = columns
        self._close = close

    def _capture(self, name: str) -> EncodeJob:
        sources, columns = self._sources(name)
        if self._annotations.has_any(name) and columns:
            raise ValueError(
                f"metric {name!r}: a grid cannot have boxes or masks; log its images separately"
            )
        annotations = self._annotations.capture(name, size_of(sources[0]))
        nbytes = sum(map(nbytes_of, sources))
        nbytes += sum(mask.nbytes for mask in annotations.masks.values())
        encoder = partial(encode, sources, columns, self.caption, annotations)
        return EncodeJob(nbytes, encoder, self._close_figures)

    def _capture_cell(self, name: str) -> tuple[int, Any]:
        """Capture the image as a table cell; return its size in bytes and its encoder."""
        if self._annotations.has_any(name):
            raise ValueError(
                f"metric {name!r}: an image in a table cannot have boxes or masks; log it "
                "separately"
            )
        sources, columns = self._sources(name)
        self._close_figures()
        nbytes = sum(map(nbytes_of, sources))
        return nbytes, partial(encode_cell, sources, columns, self.caption)

    def _sources(self, name: str) -> tuple[list[Source], int]:
        """Capture the images; return them and the columns of their grid, 0 for a single image."""
        check_installed("PIL", f"metric {name!r}", "'metricbus[media]'")
        check_text(name, "caption=", self.caption)
        data = self._data
        is_list = isinstance(data, list | tuple) and not _is_nested_numbers(data)
        if not is_list and getattr(data, "ndim", 0) != 4:
            return [self._source(name, data)], 0
        if not len(data):
            raise ValueError(f"metric {name!r} was given no image; expected {_ACCEPTED}")
        sources: list[Source] = []
        pixels = 0
        for image in data:
            sources.append(self._source(name, image))
            pixels += math.prod(size_of(sources[-1]) or ())
            if pixels > arrays.MAX_PIXELS:  # checked before the next image is copied
                raise ValueError(
                    f"metric {name!r} was given a grid of {len(data):,} images with more than "
                    f"{arrays.MAX_PIXELS:,} pixels in total; log fewer or smaller ones"
                )
        if self._columns is None:
            return sources, math.ceil(math.sqrt(len(sources)))
        if type(self._columns) is not int or self._columns < 1:
            raise ValueError(
                f"metric {name!r}: columns= must be a positive integer, not {self._columns!r}"
            )
        return sources, min(self._columns, len(sources))

    def _source(self, name: str, data: Any) -> Source:
        if (path := media_path(name, data)) is not None:
            return path
        if _is_instance("PIL.Image", "Image", data):
            arrays.check_size(name, data.size)
            try:
                copied: PilImage = data.copy()
            except Exception as error:  # a lazily loaded file may be broken or closed
                raise ValueError(f"metric {name!r}: cannot read the image: {error}") from error
            return copied
        if _is_instance("matplotlib.figure", "Figure", data):
            return _draw_figure(name, data)
        view = arrays.as_array(name, data, _ACCEPTED)
        layout = arrays.check_layout(
            name, data if arrays.is_tensor(data) else view, view.shape, self._layout
        )
        arrays.check_pixels(name, data, view)
        return arrays.channels_last(arrays.snapshot(view), layout)

    def _close_figures(self) -> None:
        """Close figures that pyplot manages, if `close=True`."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if not self._close or pyplot is None:
            return
        for image in self._data if isinstance(self._data, list | tuple) else [self._data]:
            if _is_instance("matplotlib.figure", "Figure", image):
                pyplot.close(image)


def _is_nested_numbers(data: Sequence[Any]) -> bool:
    """Check whether a list is one image's pixels rather than a list of images."""
    inner = data[0] if len(data) else None
    while isinstance(inner, list | tuple) and inner:
        inner = inner[0]
    return isinstance(inner, int | float | np.generic)


def _is_instance(module: str, class_name: str, data: object) -> bool:
    """Check whether `data` is an instance of a class, without importing its module."""
    # In a partially imported module the class may be missing.
    return isinstance(data, getattr(sys.modules.get(module), class_name, ()))


def _draw_figure(name: str, figure: Any) -> arrays.Array:
    """Return the figure's pixels as uint8 of shape (H, W, 4), and leave its canvas unchanged."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    original = figure.canvas
    canvas = FigureCanvasAgg(figure)
    try:
        arrays.check_size(name, canvas.get_width_height())
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.array(canvas.buffer_rgba(), copy=True)  # type: ignore[no-untyped-call]
    except Exception as error:  # such as invalid mathtext in a title
        raise ValueError(f"metric {name!r}: cannot draw the figure: {error}") from error
    finally:
        figure.set_canvas(original)
    return pixels

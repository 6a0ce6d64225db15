"""`Image`: a picture or a grid of them, with boxes and masks."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from metricbus.kind import (
    Kind,
    Taken,
    Work,
    as_path,
    check_file,
    check_package,
    check_text,
)
from metricbus.kinds.arrays import (
    MOST_PIXELS,
    Array,
    Layout,
    as_bytes,
    channels_last,
    check_layout,
    check_pixels,
    is_tensor,
    snapshot,
    told,
    view_of,
)
from metricbus.media_records import Box, FileRef, ImageRecord, Picture
from metricbus.values import INT_MAX, INT_MIN, to_number

if TYPE_CHECKING:
    from PIL.Image import Image as Pil

Source: TypeAlias = "Array | Path | Pil"

_ACCEPTED = (
    "an array or tensor of pixels, a PIL image, a path, a matplotlib figure, or a list of these"
)
_PLAIN_MODES = ("L", "RGB", "RGBA")
_UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_GAP = 2  # pixels between the pictures of a grid
_LARGEST_CLASS = 65_535
_PNG_LEVEL = 3  # of deflate: half the time of the default, files some percent larger


class _Marks(NamedTuple):
    """What is shown on a picture."""

    boxes: Sequence[Box]
    masks: Mapping[str, Array]
    labels: Mapping[int, str]


class Image(Kind):
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
        self._boxes = () if boxes is None else boxes
        self._masks = {} if masks is None else masks
        self._labels = {} if class_labels is None else class_labels
        self._layout = layout
        self._columns = columns
        self._close = close

    def take(self, name: str) -> Taken:
        """Checks and copies the pixels."""
        sources, is_grid = self._sources(name)
        marks = self._check_marks(name, sources, is_grid)
        nbytes = sum(map(_nbytes_of, sources)) + sum(mask.nbytes for mask in marks.masks.values())
        columns = self._check_columns(name, len(sources)) if is_grid else 0
        encode = partial(_encode, sources, columns, self.caption, marks)
        return Taken(nbytes, encode, self._close_figures)

    def take_cell(self, name: str) -> tuple[int, Any]:
        """The same for a picture in a table: about how many bytes, and what makes the cell."""
        if self._has_marks(name):
            raise ValueError(
                f"metric {name!r}: a picture in a table has no boxes and masks; log it alone"
            )
        sources, is_grid = self._sources(name)
        columns = self._check_columns(name, len(sources)) if is_grid else 0
        nbytes = sum(map(_nbytes_of, sources))
        self._close_figures()
        return nbytes, partial(_encode_cell, sources, columns, self.caption)

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
            pixels += math.prod(_size_of(sources[-1]) or ())
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
            _check_size(name, data.size)
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
        return channels_last(snapshot(name, view, _ACCEPTED), layout)

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

    def _has_marks(self, name: str) -> bool:
        if isinstance(self._boxes, str) or not isinstance(self._boxes, Sequence):
            raise TypeError(
                f"metric {name!r}: boxes= is a list of Box(…) or of dicts, not {told(self._boxes)}"
            )
        for what, given in (("masks=", self._masks), ("class_labels=", self._labels)):
            if not isinstance(given, Mapping):
                raise TypeError(f"metric {name!r}: {what} is a dict, not {told(given)}")
        return bool(self._boxes or self._masks)

    def _check_marks(self, name: str, sources: Sequence[Source], is_grid: bool) -> _Marks:
        if self._has_marks(name) and is_grid:
            raise ValueError(f"metric {name!r}: a grid has no boxes and masks; log one picture")
        boxes = [_check_box(name, box) for box in self._boxes]
        size = _size_of(sources[0])
        masks = {
            check_text(name, "a mask's name", key): _check_mask(name, key, mask, size)
            for key, mask in self._masks.items()
        }
        labels = {}
        for number, label in self._labels.items():
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                raise TypeError(
                    f"metric {name!r}: class_labels= has names by class number, not by {number!r}"
                )
            _check_class(name, int(number))
            labels[int(number)] = check_text(name, "a class's name", label)
        return _Marks(boxes, masks, labels)


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


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(
            f"metric {name!r} was given a picture of {width:,} x {height:,}; from 1 to "
            f"{MOST_PIXELS:,} pixels are taken"
        )


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
    return snapshot(name, view, "an array")


def _draw_figure(name: str, figure: Any) -> Array:
    """The figure's pixels; its canvas stays the one it has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    canvas = FigureCanvasAgg(figure)
    try:
        _check_size(name, canvas.get_width_height())
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.array(canvas.buffer_rgba(), copy=True)  # type: ignore[no-untyped-call]
    except Exception as error:  # a bad formula in a title, say
        raise ValueError(f"metric {name!r}: the figure cannot be drawn: {error}") from error
    finally:
        figure.set_canvas(before)
    return pixels


def _size_of(source: Source) -> tuple[int, int] | None:
    if isinstance(source, Path):
        return None
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    return source.size


def _nbytes_of(source: Source) -> int:
    if isinstance(source, np.ndarray):
        return source.nbytes
    size = _size_of(source)
    return 4 * size[0] * size[1] if size else 0


# In the background


def _encode(
    sources: Sequence[Source], columns: int, caption: str, marks: _Marks, work: Work
) -> ImageRecord:
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
        from metricbus.kinds.drawing import annotate

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


def _encode_cell(sources: Sequence[Source], columns: int, caption: str, work: Work) -> Picture:
    picture = _picture(sources, columns, work)
    file = work.save("tables", ".png", png_of(picture))
    return Picture(file, picture.width, picture.height, len(picture.getbands()), caption)


def png_of(picture: Pil) -> bytes:
    """The picture as PNG, without loss."""
    content = io.BytesIO()
    picture.save(content, "png", compress_level=_PNG_LEVEL)
    return content.getvalue()


def _picture(sources: Sequence[Source], columns: int, work: Work) -> Pil:
    pictures = [_load(source, work) for source in sources]
    return _grid(pictures, columns) if columns else pictures[0]


def _load(source: Source, work: Work) -> Pil:
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


def _open(path: Path, work: Work) -> Pil:
    """The picture in a file; `ValueError` whatever is wrong with it: to try again is no use."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as opened:
            _check_size(work.stamp.name, opened.size)
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


def _save_mask(key: str, mask: Array, work: Work) -> FileRef:
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

"""`Image`: pixels that come back as they were given, grids, boxes and masks."""

from __future__ import annotations

import io
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metricbus import Box, Image, MetricBus, Table
from metricbus._common.media_base import MediaValue
from metricbus._common.media_records import ImageRecord
from metricbus._delivery.report import Report
from metricbus.media.arrays import as_bytes, channels_last, check_layout
from metricbus.media.png import png_of
from metricbus.testing import MemorySink

Array = NDArray[Any]

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (4, 6), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
MODES = {"1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA"} | {
    "RGBX",
    "RGBa",
    "La",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
}


class Shown:
    """An image that was logged: its record, its pixels and the files beside it."""

    def __init__(self, folder: Path, image: Image) -> None:
        sink = MemorySink()
        with MetricBus(sinks=[sink], dir=folder) as bus:
            bus.log("a/b", image)
        (record,) = sink.media("a/b")
        assert isinstance(record, ImageRecord)
        self.record = record
        self.pixels = self._pixels(sink, record.file)
        self.masks = {key: self._pixels(sink, ref) for key, ref in record.masks.items()}
        self.drawn = self._pixels(sink, record.drawn)

    def _pixels(self, sink: MemorySink, ref: Any) -> Array:
        with PIL.Image.open(io.BytesIO(sink.files.read(ref))) as opened:
            assert opened.format == "PNG"
            return np.asarray(opened)


def report_of(folder: Path, image: Image) -> Report:
    """What became of an image, and of a number that was logged with it."""
    with MetricBus(sinks=[MemorySink()], dir=folder) as bus:
        bus.log({"loss": 1.0, "a/b": image})
    report = bus.stats()
    assert report.journalled + report.dropped == 2
    return report


def told_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "metricbus.media"]


# Pixels


LAYOUTS: list[tuple[tuple[int, ...], str, tuple[int, ...]]] = [
    ((5, 6), "HW", (5, 6)),
    ((5, 6, 1), "HWC", (5, 6)),
    ((5, 6, 3), "HWC", (5, 6, 3)),
    ((5, 6, 4), "HWC", (5, 6, 4)),
    ((1, 5, 6), "CHW", (5, 6)),
    ((3, 5, 6), "CHW", (5, 6, 3)),
    ((4, 5, 6), "CHW", (5, 6, 4)),
    ((1, 1), "HW", (1, 1)),
]


@pytest.mark.parametrize(("shape", "layout", "seen"), LAYOUTS)
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_pixels_come_back_exactly(
    tmp_path: Path, shape: tuple[int, ...], layout: str, seen: tuple[int, ...], make: Any
) -> None:
    given_pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    expected = np.moveaxis(given_pixels, 0, -1) if layout == "CHW" else given_pixels
    shown = Shown(tmp_path, Image(make(given_pixels)))
    np.testing.assert_array_equal(shown.pixels, expected.reshape(seen))
    assert (shown.record.height, shown.record.width) == shown.pixels.shape[:2]
    assert shown.record.channels == (shown.pixels.shape[2] if shown.pixels.ndim == 3 else 1)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(5, 9), st.just(3))))
@settings(max_examples=50)
def test_a_png_loses_nothing(pixels: Array) -> None:
    array = channels_last(pixels, check_layout("n", pixels, pixels.shape, "HWC"))
    png = png_of(PIL.Image.fromarray(as_bytes(array)[0]))
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(png))), pixels)


def test_where_both_ends_could_be_channels_a_tensor_has_them_first(tmp_path: Path) -> None:
    both = RANDOM.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    shown = Shown(tmp_path, Image(torch.from_numpy(both)))
    np.testing.assert_array_equal(shown.pixels, np.moveaxis(both, 0, -1))


def test_where_both_ends_could_be_channels_an_array_has_them_last(tmp_path: Path) -> None:
    both = RANDOM.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    np.testing.assert_array_equal(Shown(tmp_path, Image(both)).pixels, both)


def test_a_layout_decides(tmp_path: Path) -> None:
    both = RANDOM.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    shown = Shown(tmp_path, Image(both, layout="CHW"))
    np.testing.assert_array_equal(shown.pixels, np.moveaxis(both, 0, -1))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_from_0_to_1_are_brightness(tmp_path: Path, dtype: str) -> None:
    pixels = np.array([[0, 0.5, 1], [0.25, 0.75, 0.001]], dtype)
    expected = np.rint(pixels.astype(np.float32) * 255)
    np.testing.assert_array_equal(Shown(tmp_path, Image(pixels)).pixels, expected)


def test_bfloat16_and_what_requires_a_gradient_are_taken(tmp_path: Path) -> None:
    pixels = torch.ones(3, 5, 6, dtype=torch.bfloat16, requires_grad=True)
    assert (Shown(tmp_path, Image(pixels)).pixels == 255).all()


def test_booleans_are_black_and_white(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Image(np.array([[True, False]])))
    assert shown.pixels.tolist() == [[255, 0]]


def test_nested_lists_of_floats_are_one_picture(tmp_path: Path) -> None:
    assert Shown(tmp_path, Image([[0.0, 1.0], [1.0, 0.0]])).pixels.tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize(
    ("pixels", "seen", "told"),
    [
        (
            [[-1.0, 2.0]],
            [[0, 255]],
            "pixels outside of 0 to 1 are clipped (floats to 255 want / 255)",
        ),
        (
            [[1e300, -math.inf]],
            [[255, 0]],
            "pixels outside of 0 to 1 are clipped (floats to 255 want / 255)",
        ),
        ([[math.nan, 1.0]], [[0, 255]], "NaN pixels are shown as 0"),
        ([[math.nan, math.inf]], [[0, 255]], "NaN pixels are shown as 0 and pixels outside"),
    ],
)
def test_a_repair_is_told_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    pixels: list[list[float]],
    seen: list[list[int]],
    told: str,
) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for _ in range(3):
            bus.log("a/b", Image(np.array(pixels)))
    assert bus.stats().dropped == 0
    (warning,) = told_of(caplog)
    assert warning.startswith(f"'a/b' at step 0: {told}")
    for record in sink.media("a/b"):
        assert isinstance(record, ImageRecord)
        png = io.BytesIO(sink.files.read(record.file))
        assert np.asarray(PIL.Image.open(png)).tolist() == seen


def test_a_change_in_place_after_the_call_does_not_show(tmp_path: Path) -> None:
    array, tensor = np.zeros((4, 5), np.uint8), torch.zeros(4, 5)
    picture, mask = PIL.Image.new("L", (5, 4)), np.zeros((4, 5), np.uint8)
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        images = Image(array, masks={"m": mask}), Image(tensor), Image(picture)
        bus.log({"array": images[0], "tensor": images[1], "pil": images[2]})
        array[:] = mask[:] = 9
        tensor.fill_(1)
        picture.putpixel((0, 0), 9)
    for name in ("array", "tensor", "pil"):
        (record,) = sink.media(name)
        assert isinstance(record, ImageRecord)
        for ref in (record.file, *record.masks.values()):
            pixels = np.asarray(PIL.Image.open(io.BytesIO(sink.files.read(ref))))
            assert not pixels.any()


# PIL images and files


@pytest.mark.parametrize("mode", sorted(MODES))
def test_pil_images_of_every_mode_are_taken(tmp_path: Path, mode: str) -> None:
    picture = PIL.Image.new(mode, (6, 4))
    assert Shown(tmp_path, Image(picture)).pixels.shape[:2] == (4, 6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pil_pixels_come_back_exactly(tmp_path: Path, mode: str) -> None:
    shape = (4, 6, len(mode)) if mode != "L" else (4, 6)
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    shown = Shown(tmp_path, Image(PIL.Image.fromarray(pixels)))
    np.testing.assert_array_equal(shown.pixels, pixels)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "PA"])
def test_transparency_is_kept(tmp_path: Path, mode: str) -> None:
    assert Shown(tmp_path, Image(PIL.Image.new(mode, (6, 4)))).record.channels == 4


def test_a_palette_is_resolved(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(COLOUR).quantize(16)
    shown = Shown(tmp_path, Image(picture))
    np.testing.assert_array_equal(shown.pixels, np.asarray(picture.convert("RGB")))


def test_a_profile_of_other_channels_is_left_out(tmp_path: Path) -> None:
    picture = PIL.Image.new("CMYK", (6, 4))
    picture.info["icc_profile"] = b"of four inks"
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("a/b", Image(picture))
    (record,) = sink.media("a/b")
    assert isinstance(record, ImageRecord)
    assert "icc_profile" not in PIL.Image.open(io.BytesIO(sink.files.read(record.file))).info


@pytest.mark.parametrize(
    ("mode", "pixels"),
    [
        ("I;16", np.array([[1000, 2000, 3000]], np.uint16)),
        ("I", np.array([[-5, 0, 5]], np.int32)),
        ("F", np.array([[0.0, 0.5, 1.0]], np.float32)),
        ("F", np.array([[-math.inf, 0.5, math.nan]], np.float32)),
    ],
)
def test_deeper_greys_are_stretched_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, pixels: Array
) -> None:
    shown = Shown(tmp_path, Image(PIL.Image.fromarray(pixels)))
    expected = [[0, 128, 255]] if np.isfinite(pixels).all() else [[0, 0, 0]]
    assert shown.pixels.tolist() == expected
    assert told_of(caplog) == [
        f"'a/b' at step 0: a picture of the mode {mode} is converted to 8 bits a channel"
    ]


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff"])
def test_a_file_is_read_whatever_its_format(
    tmp_path: Path, as_type: Callable[[Path], Any], suffix: str
) -> None:
    path = tmp_path / f"picture.{suffix}"
    PIL.Image.fromarray(COLOUR).save(path, lossless=True)
    shown = Shown(tmp_path, Image(as_type(path)))
    np.testing.assert_array_equal(shown.pixels, COLOUR)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", png_of(PIL.Image.fromarray(COLOUR))[:-30]]
)
def test_a_file_that_is_no_picture_is_rejected_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    report = report_of(tmp_path, Image(path))
    assert (report.journalled, report.dropped) == (1, 1)
    assert report.error is not None
    assert "'a/b' at step 0 was dropped" in report.error
    assert f"{path} cannot be read as a picture" in report.error
    assert told_of(caplog) == [report.error]


def test_a_truncated_file_that_pil_has_opened_is_refused_at_the_call(tmp_path: Path) -> None:
    content = png_of(PIL.Image.fromarray(COLOUR))[:-30]
    with (
        PIL.Image.open(io.BytesIO(content)) as opened,
        pytest.raises(ValueError, match="metric 'a/b': the picture cannot be read: "),
    ):
        Image(opened)._capture("a/b")


# Figures


def figure_of(size: tuple[float, float] = (2, 1)) -> Figure:
    figure = Figure(figsize=size, dpi=100)
    figure.add_subplot().plot([1, 2])
    return figure


def test_a_figure_is_drawn_in_its_size(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Image(figure_of()))
    assert shown.pixels.shape == (100, 200, 4)
    assert shown.pixels[..., :3].std() > 0


def test_a_figure_keeps_its_canvas() -> None:
    figure = figure_of()
    before = figure.canvas
    Image(figure)._capture("a/b")
    assert figure.canvas is before


@pytest.fixture
def figure() -> Iterator[Figure]:
    """A figure of pyplot's, which has no window."""
    mpl.use("agg")
    from matplotlib import pyplot

    yield pyplot.figure(figsize=(1, 1))
    pyplot.close("all")


def is_open(figure: Figure) -> bool:
    from matplotlib import pyplot

    return pyplot.fignum_exists(figure.number)


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize(
    "made_of",
    [
        lambda figure, close: Image(figure, close=close),
        lambda figure, close: Image([figure, GREY], close=close),
        lambda figure, close: Table(["picture"], [[Image(figure, close=close)]]),
    ],
    ids=["alone", "grid", "cell"],
)
def test_a_figure_of_pyplot_stays_open_unless_told_otherwise(
    tmp_path: Path, figure: Figure, made_of: Callable[[Figure, bool], MediaValue], close: bool
) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("a/b", made_of(figure, close))
    assert is_open(figure) is not close


def test_a_figure_stays_open_if_nothing_is_logged(tmp_path: Path, figure: Figure) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus, pytest.raises(TypeError, match="metric 'bad'"):
        bus.log({"a": Image(figure, close=True), "bad": object()})
    assert is_open(figure)


def test_a_figure_that_changes_after_the_call_is_shown_as_it_was(tmp_path: Path) -> None:
    figure = figure_of()
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log({"one": Image(figure)})
        figure.clear()
    (record,) = sink.media("one")
    assert isinstance(record, ImageRecord)
    pixels = np.asarray(PIL.Image.open(io.BytesIO(sink.files.read(record.file))))
    assert pixels[..., :3].std() > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda figure: figure.suptitle(r"$\oops$"), "the figure cannot be drawn"),
        (lambda figure: figure.set_size_inches(200, 200), "20,000 x 20,000"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(
    change: Callable[[Figure], object], told: str
) -> None:
    figure = figure_of()
    before = figure.canvas
    change(figure)
    with pytest.raises(ValueError, match=f"metric 'a/b'.*{told}"):
        Image(figure)._capture("a/b")
    assert figure.canvas is before


# Grids


def test_several_pictures_become_a_grid(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Image([GREY] * 3))
    assert shown.pixels.shape == (4 + 2 + 4, 6 + 2 + 6)
    for row, column in ((0, 0), (0, 8), (6, 0)):
        np.testing.assert_array_equal(shown.pixels[row : row + 4, column : column + 6], GREY)
    assert not shown.pixels[6:, 8:].any()


@pytest.mark.parametrize(("columns", "size"), [(1, (22, 6)), (4, (4, 30)), (9, (4, 30))])
def test_the_number_of_columns_can_be_said(
    tmp_path: Path, columns: int, size: tuple[int, int]
) -> None:
    assert Shown(tmp_path, Image([GREY] * 4, columns=columns)).pixels.shape == size


@pytest.mark.parametrize(
    "batch",
    [np.stack([COLOUR] * 4), torch.from_numpy(np.stack([COLOUR] * 4)).movedim(-1, 1)],
    ids=["NHWC", "NCHW"],
)
def test_a_batch_is_a_grid(tmp_path: Path, batch: Any) -> None:
    shown = Shown(tmp_path, Image(batch))
    np.testing.assert_array_equal(shown.pixels[:4, :6], COLOUR)
    assert shown.pixels.shape == (10, 14, 3)


def test_a_grid_mixes_sizes_and_channels(tmp_path: Path) -> None:
    figure, tensor = figure_of((0.2, 0.1)), torch.zeros(3, 5, 5)
    shown = Shown(tmp_path, Image([GREY, PIL.Image.new("RGB", (9, 3)), figure, tensor]))
    assert shown.pixels.shape == (10 + 2 + 10, 20 + 2 + 20, 4)
    assert (shown.pixels[:4, :6, :3] == GREY[..., None]).all()


@pytest.mark.parametrize("columns", [0, -1, 1.5, True, "2"])
def test_bad_columns_are_refused(columns: Any) -> None:
    with pytest.raises(ValueError, match="metric 'a/b': columns= is a whole number from 1 on"):
        Image([GREY], columns=columns)._capture("a/b")


def test_a_grid_with_too_many_pixels_is_refused_before_they_are_copied() -> None:
    batch = np.broadcast_to(np.uint8(0), (1000, 6000, 6000, 3))
    with pytest.raises(ValueError, match="metric 'a/b' was given a grid of 1,000 pictures"):
        Image(batch)._capture("a/b")


# Boxes and masks


def test_boxes_in_pixels_are_kept_and_drawn(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    boxes: list[Any] = [
        Box(5, 5, 20, 30, label=1, score=0.5),
        {"left": 1.5, "top": 2, "right": 3, "bottom": 4},
    ]
    shown = Shown(tmp_path, Image(pixels, boxes=boxes, class_labels={1: "cat"}))
    assert shown.record.boxes == [Box(5, 5, 20, 30, label=1, score=0.5), Box(1.5, 2, 3, 4)]
    assert shown.record.class_labels == {1: "cat"}
    assert not shown.pixels.any()
    assert shown.drawn[5, 5:21].any(axis=1).all()


def test_fractions_become_pixels(tmp_path: Path) -> None:
    box = Box(0.25, 0.5, 1, 1, label="cat", fractions=True)
    shown = Shown(tmp_path, Image(np.zeros((40, 60)), boxes=[box]))
    assert shown.record.boxes == [Box(15, 20, 60, 40, label="cat")]


def test_boxes_may_hold_numbers_of_numpy_and_torch(tmp_path: Path) -> None:
    sides: list[Any] = [np.float32(1), torch.tensor(2.0), np.int64(3), 4]
    extra: dict[str, Any] = {"label": np.int64(7), "score": np.float32(0.5)}
    box = dict(zip(["left", "top", "right", "bottom"], sides, strict=True)) | extra
    shown = Shown(tmp_path, Image(np.zeros((40, 60)), boxes=[box, Box(*sides, **extra)]))
    assert shown.record.boxes == [Box(1, 2, 3, 4, label=7, score=0.5)] * 2


@pytest.mark.parametrize("side", [1e9, 1e308])
def test_boxes_may_reach_out_of_the_picture(tmp_path: Path, side: float) -> None:
    box = Box(-side, -side, side, side)
    assert Shown(tmp_path, Image(GREY, boxes=[box])).record.boxes == [box]


def test_nothing_is_drawn_on_a_picture_without_marks(tmp_path: Path) -> None:
    assert Shown(tmp_path, Image(GREY)).record.annotated is None


@pytest.mark.parametrize(
    ("most", "dtype"), [(255, np.uint8), (256, np.int64), (65_535, np.uint16), (1, np.bool_)]
)
def test_masks_come_back_exactly(tmp_path: Path, most: int, dtype: Any) -> None:
    mask = (np.arange(24).reshape(4, 6) * most // 23).astype(dtype)
    shown = Shown(tmp_path, Image(GREY, masks={"truth": mask, "guess": torch.from_numpy(mask)}))
    for key in ("truth", "guess"):
        np.testing.assert_array_equal(shown.masks[key], mask)
    assert (shown.drawn != GREY[..., None]).any()


def test_a_mask_of_classes_only_0_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Image(COLOUR, masks={"m": np.zeros((4, 6), int)}))
    np.testing.assert_array_equal(shown.drawn, COLOUR)


@pytest.mark.parametrize("number", [-1, 65_536])
def test_a_mask_with_other_numbers_is_rejected_in_the_background(
    tmp_path: Path, number: int
) -> None:
    report = report_of(tmp_path, Image(GREY, masks={"m": np.full((4, 6), number)}))
    assert (report.journalled, report.dropped) == (1, 1)
    assert "the mask 'm' has classes outside of 0 to 65,535" in (report.error or "")


def test_a_mask_that_does_not_fit_a_file_is_rejected_in_the_background(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(GREY).save(path)
    report = report_of(tmp_path, Image(path, masks={"m": np.zeros((5, 5), int)}))
    assert report.dropped == 1
    assert "the mask 'm' is not as large as the picture" in (report.error or "")


@pytest.mark.parametrize(
    ("box", "told"),
    [
        (Box(0, 0, math.nan, 1), "left <= right, top <= bottom, finite"),
        (Box(0, 0, math.inf, 1), "left <= right, top <= bottom, finite"),
        (Box(2, 0, 1, 1), "left <= right"),
        (Box(0, 2, 1, 1), "top <= bottom"),
        (Box(0, 0, 1.5, 1, fractions=True), "sides outside of 0 to 1"),
        (Box(-0.5, 0, 1, 1, fractions=True), "sides outside of 0 to 1"),
        (Box(0, 0, 1, 1, score=math.nan), "the score of a box is finite, not nan"),
        (Box(0, 0, 1, 1, label="\ud800"), "the label of a box cannot be written"),
        (Box(0, 0, 1, 1, caption="\ud800"), "the caption of a box cannot be written"),
        (Box(0, 0, 1, 1, label=1 << 64), "a class is a number of 64 bits"),
        (Box(0, 0, 1, 1, label=True), "is no box .*write Box"),
        ({"left": 0}, "is no box .*`top`.*write Box"),
        ({"left": 0, "top": 0, "right": 1, "bottom": 1, "lable": 1}, "no field 'lable'"),
        (Box("0", 0, 1, 1), "is no box .*write Box"),  # type: ignore[arg-type]
        (Box(np.zeros(3), 0, 1, 1), "is no box .*write Box"),  # type: ignore[arg-type]
        ([0, 0, 1, 1], "is no box .*write Box"),
    ],
    ids=repr,
)
def test_bad_boxes_are_refused(box: Any, told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"metric 'a/b'.*{told}"):
        Image(GREY, boxes=[box])._capture("a/b")


@pytest.mark.parametrize(
    ("marks", "told"),
    [
        ({"boxes": Box(0, 0, 1, 1)}, "boxes= is a list of .*, not Box"),
        ({"boxes": {"left": 0}}, "boxes= is a list of .*, not dict"),
        ({"boxes": np.zeros((2, 4))}, "boxes= is a list of .*, not ndarray"),
        ({"masks": [GREY]}, "masks= is a dict, not list"),
        ({"masks": GREY}, "masks= is a dict, not ndarray"),
        ({"masks": {"m": np.zeros((4, 6))}}, "the mask 'm' is .*float64; it has whole numbers"),
        ({"masks": {"m": np.zeros((4, 6, 1), int)}}, "the mask 'm' is .*two axes"),
        ({"masks": {"m": np.zeros((6, 4), int)}}, "the mask 'm' is 4 x 6, its picture 6 x 4"),
        ({"masks": {"m": [[1, 2], [3]]}}, "is no array"),
        ({"masks": {3: GREY}}, "a mask's name must be text, not int"),
        ({"masks": {"\ud800": GREY}}, "a mask's name cannot be written"),
        ({"class_labels": ["cat"]}, "class_labels= is a dict, not list"),
        ({"class_labels": {"1": "cat"}}, "names by class number, not by '1'"),
        ({"class_labels": {1: 2}}, "a class's name must be text, not int"),
        ({"class_labels": {1: "\ud800"}}, "a class's name cannot be written"),
        ({"class_labels": {1 << 64: "cat"}}, "a class is a number of 64 bits"),
    ],
)
def test_bad_marks_are_refused(marks: dict[str, Any], told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b'.*{told}"):
        Image(GREY, **marks)._capture("a/b")


@pytest.mark.parametrize("marks", [{"boxes": [Box(0, 0, 1, 1)]}, {"masks": {"m": GREY}}])
def test_a_grid_has_no_marks(marks: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="metric 'a/b': a grid has no boxes and masks"):
        Image([GREY], **marks)._capture("a/b")


# Bad input


@pytest.mark.parametrize("shape", [(20_000, 20_000), (20_000, 20_000, 3), (3, 20_000, 20_000)])
def test_a_huge_picture_is_refused_before_it_is_copied(shape: tuple[int, ...]) -> None:
    huge = np.broadcast_to(np.uint8(0), shape)
    with pytest.raises(ValueError, match="metric 'a/b' was given a picture of 20,000 x 20,000"):
        Image(huge)._capture("a/b")


PICTURE = "a picture has height and width, with 1, 3 or 4 channels first or last"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (np.zeros(3), rf"ndarray of shape \(3,\) and dtype float64; {PICTURE}"),
        (np.zeros((5, 5, 2)), rf"ndarray of shape \(5, 5, 2\) and dtype float64; {PICTURE}"),
        (torch.zeros(2, 5, 5), rf"Tensor of shape \(2, 5, 5\).*; {PICTURE}"),
        (np.zeros((1, 2, 3, 4, 5)), PICTURE),
        (np.zeros((0, 5)), rf"an empty picture of shape \(0, 5\); {PICTURE}"),
        (np.zeros((0, 5, 5, 3)), "no picture; what is accepted is an array"),
        ([], "no picture; what is accepted is an array"),
        (3, PICTURE),
        (np.zeros((5, 5), int), "dtype int64; pixels are uint8, or floats from 0 to 1"),
        ([[1, 2], [3, 4]], "list; pixels are uint8, or floats"),
        (np.zeros((5, 5), complex), "dtype complex128; what is accepted is an array"),
        (np.array([[None]]), "dtype object; what is accepted is an array"),
        ([[0.1, 0.2], [0.3]], "list, which is no array"),
        (torch.zeros(5, 5, device="meta"), "Tensor of shape .*what is accepted is an array"),
        (None, "NoneType; what is accepted is an array"),
        ([GREY, None], "NoneType; what is accepted is an array"),
        (b"bytes", "bytes; what is accepted is an array"),
        ({"a": 1}, "dict; what is accepted is an array"),
        ((x for x in [GREY]), "generator; what is accepted is an array"),
    ],
)
def test_what_is_no_picture_is_refused(data: Any, told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b' was given .*{told}"):
        Image(data)._capture("a/b")


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("CHW", r"ndarray of shape \(4, 6\).* by layout='CHW'"),
        ("XYZ", 'layout= is "HW", "HWC" or "CHW", not \'XYZ\''),
        (3, "layout= is .* not 3"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"metric 'a/b'.*{told}"):
        Image(GREY, layout=layout)._capture("a/b")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("missing.png", "missing.png' cannot be read: No such file"),
        ("/dev/zero", "/dev/zero is no regular file; give the path of a file"),
        (".", "is a folder; give the path of a file"),
        ("nul\0.png", "cannot be read: embedded null byte"),
        ("\ud800.png", "cannot be read: 'utf-8' codec"),
        ("long" * 5000, "cannot be read: File name too long"),
    ],
)
def test_a_bad_path_is_refused(path: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"metric 'a/b'.*{told}") as caught:
        Image(path)._capture("a/b")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("caption", "told"),
    [("\ud800", "cannot be written as UTF-8"), (None, "not NoneType"), (b"x", "not bytes")],
)
def test_a_bad_caption_is_refused(caption: Any, told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b': caption= .*{told}"):
        Image(GREY, caption)._capture("a/b")


@pytest.mark.parametrize("bad", [np.zeros((5, 5, 2)), "missing.png", np.array([[None]])])
def test_with_one_bad_picture_nothing_of_a_mapping_is_logged(tmp_path: Path, bad: Any) -> None:
    sink = MemorySink()
    bus = MetricBus(sinks=[sink], dir=tmp_path)
    with pytest.raises((TypeError, ValueError), match="metric 'b'"):
        bus.log({"loss": 1.0, "a": Image(GREY), "b": Image(bad)})
    bus.close()
    assert sink.records == []
    assert bus.stats().logged == 0


def test_an_encoder_that_fails_is_counted_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(picture: object) -> bytes:
        raise MemoryError("no room for a PNG")

    monkeypatch.setattr(sys.modules["metricbus.media.png"], "png_of", fail)
    with caplog.at_level(logging.WARNING, "metricbus.media"):
        report = report_of(tmp_path, Image(GREY))
    assert (report.journalled, report.dropped, report.waiting) == (1, 1, 0)
    assert report.error == "'a/b' at step 0 was dropped: MemoryError: no room for a PNG"
    assert told_of(caplog) == [report.error]

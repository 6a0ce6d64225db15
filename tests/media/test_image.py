"""Tests of `Image`: pixels, files, figures, grids, boxes and masks."""

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
from metricbus.media.arrays import channels_last, check_layout, to_uint8
from metricbus.media.png import png_of
from metricbus.testing import MemorySink
from tests.helpers.media_logging import logged, pixels_of, report_of, warnings_of

Array = NDArray[Any]

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (4, 6), dtype=np.uint8)
COLOR = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
MODES = {"1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA"} | {
    "RGBX",
    "RGBa",
    "La",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
}


class LoggedImage:
    """The record, pixels, masks and annotated copy of an image, read back after logging it."""

    def __init__(self, folder: Path, image: Image) -> None:
        self.record, sink = logged(folder, ImageRecord, image)
        self.pixels = pixels_of(sink, self.record.file)
        self.masks = {key: pixels_of(sink, ref) for key, ref in self.record.masks.items()}
        self.drawn = pixels_of(sink, self.record.drawn)


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


@pytest.mark.parametrize(("shape", "layout", "expected_shape"), LAYOUTS)
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_pixels_are_stored_unchanged(
    tmp_path: Path, shape: tuple[int, ...], layout: str, expected_shape: tuple[int, ...], make: Any
) -> None:
    given_pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    expected = np.moveaxis(given_pixels, 0, -1) if layout == "CHW" else given_pixels
    stored = LoggedImage(tmp_path, Image(make(given_pixels)))
    np.testing.assert_array_equal(stored.pixels, expected.reshape(expected_shape))
    assert (stored.record.height, stored.record.width) == stored.pixels.shape[:2]
    assert stored.record.channels == (stored.pixels.shape[2] if stored.pixels.ndim == 3 else 1)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(5, 9), st.just(3))))
@settings(max_examples=50)
def test_png_is_lossless(pixels: Array) -> None:
    array = channels_last(pixels, check_layout("n", pixels, pixels.shape, "HWC"))
    png = png_of(PIL.Image.fromarray(to_uint8(array)[0]))
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(png))), pixels)


@pytest.mark.parametrize(
    ("make", "layout", "is_channels_first"),
    [(torch.from_numpy, None, True), (np.asarray, None, False), (np.asarray, "CHW", True)],
    ids=["tensor", "array", "layout"],
)
def test_layout_of_an_ambiguous_shape(
    tmp_path: Path, make: Any, layout: Any, is_channels_first: bool
) -> None:
    pixels = RANDOM.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    stored = LoggedImage(tmp_path, Image(make(pixels), layout=layout))
    expected = np.moveaxis(pixels, 0, -1) if is_channels_first else pixels
    np.testing.assert_array_equal(stored.pixels, expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_scaled_to_255(tmp_path: Path, dtype: str) -> None:
    pixels = np.array([[0, 0.5, 1], [0.25, 0.75, 0.001]], dtype)
    expected = np.rint(pixels.astype(np.float32) * 255)
    np.testing.assert_array_equal(LoggedImage(tmp_path, Image(pixels)).pixels, expected)


def test_accepts_bfloat16_that_requires_grad(tmp_path: Path) -> None:
    pixels = torch.ones(3, 5, 6, dtype=torch.bfloat16, requires_grad=True)
    assert (LoggedImage(tmp_path, Image(pixels)).pixels == 255).all()


def test_booleans_are_black_and_white(tmp_path: Path) -> None:
    stored = LoggedImage(tmp_path, Image(np.array([[True, False]])))
    assert stored.pixels.tolist() == [[255, 0]]


def test_nested_lists_of_floats_are_one_image(tmp_path: Path) -> None:
    assert LoggedImage(tmp_path, Image([[0.0, 1.0], [1.0, 0.0]])).pixels.tolist() == [
        [0, 255],
        [255, 0],
    ]


@pytest.mark.parametrize(
    ("pixels", "expected", "message"),
    [
        (
            [[-1.0, 2.0]],
            [[0, 255]],
            "pixels outside 0 to 1 are clipped (if yours are 0 to 255, divide by 255)",
        ),
        (
            [[1e300, -math.inf]],
            [[255, 0]],
            "pixels outside 0 to 1 are clipped (if yours are 0 to 255, divide by 255)",
        ),
        ([[math.nan, 1.0]], [[0, 255]], "NaN pixels are shown as 0"),
        ([[math.nan, math.inf]], [[0, 255]], "NaN pixels are shown as 0 and pixels outside"),
    ],
)
def test_warns_once_about_repaired_pixels(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    pixels: list[list[float]],
    expected: list[list[int]],
    message: str,
) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for _ in range(3):
            bus.log("a/b", Image(np.array(pixels)))
    assert bus.stats().dropped == 0
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"'a/b' at step 0: {message}")
    for record in sink.media("a/b"):
        assert isinstance(record, ImageRecord)
        assert pixels_of(sink, record.file).tolist() == expected


@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["array", "tensor"])
def test_pixels_and_masks_are_copied_at_the_call(tmp_path: Path, make: Any) -> None:
    pixels, mask = make((4, 5)), np.zeros((4, 5), np.uint8)

    def change() -> None:
        pixels[:] = 1
        mask[:] = 9

    record, sink = logged(tmp_path, ImageRecord, Image(pixels, masks={"m": mask}), change)
    assert not pixels_of(sink, record.file).any()
    assert not pixels_of(sink, record.masks["m"]).any()


def test_pil_image_is_copied_at_the_call(tmp_path: Path) -> None:
    image = PIL.Image.new("L", (5, 4))
    record, sink = logged(tmp_path, ImageRecord, Image(image), lambda: image.putpixel((0, 0), 9))
    assert not pixels_of(sink, record.file).any()


# PIL images and files


@pytest.mark.parametrize("mode", sorted(MODES))
def test_accepts_pil_images_of_every_mode(tmp_path: Path, mode: str) -> None:
    image = PIL.Image.new(mode, (6, 4))
    assert LoggedImage(tmp_path, Image(image)).pixels.shape[:2] == (4, 6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pil_pixels_are_stored_unchanged(tmp_path: Path, mode: str) -> None:
    shape = (4, 6, len(mode)) if mode != "L" else (4, 6)
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    stored = LoggedImage(tmp_path, Image(PIL.Image.fromarray(pixels)))
    np.testing.assert_array_equal(stored.pixels, pixels)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "PA"])
def test_transparency_is_kept(tmp_path: Path, mode: str) -> None:
    assert LoggedImage(tmp_path, Image(PIL.Image.new(mode, (6, 4)))).record.channels == 4


def test_palette_is_resolved(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(COLOR).quantize(16)
    stored = LoggedImage(tmp_path, Image(image))
    np.testing.assert_array_equal(stored.pixels, np.asarray(image.convert("RGB")))


def test_icc_profile_of_converted_image_is_removed(tmp_path: Path) -> None:
    image = PIL.Image.new("CMYK", (6, 4))
    image.info["icc_profile"] = b"CMYK"
    record, sink = logged(tmp_path, ImageRecord, Image(image))
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
def test_deep_gray_levels_are_stretched_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, pixels: Array
) -> None:
    stored = LoggedImage(tmp_path, Image(PIL.Image.fromarray(pixels)))
    expected = [[0, 128, 255]] if np.isfinite(pixels).all() else [[0, 0, 0]]
    assert stored.pixels.tolist() == expected
    assert warnings_of(caplog) == [
        f"'a/b' at step 0: an image of mode {mode} is converted to 8 bits per channel"
    ]


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff"])
def test_reads_files_of_all_formats(
    tmp_path: Path, as_type: Callable[[Path], Any], suffix: str
) -> None:
    path = tmp_path / f"image.{suffix}"
    PIL.Image.fromarray(COLOR).save(path, lossless=True)
    stored = LoggedImage(tmp_path, Image(as_type(path)))
    np.testing.assert_array_equal(stored.pixels, COLOR)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n", png_of(PIL.Image.fromarray(COLOR))[:-30]],
)
def test_unreadable_file_is_dropped_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    report = report_of(tmp_path, Image(path))
    assert (report.journalled, report.dropped) == (1, 1)
    assert report.error is not None
    assert "'a/b' at step 0 was dropped" in report.error
    assert f"{path} cannot be read as an image" in report.error
    assert warnings_of(caplog) == [report.error]


def test_rejects_truncated_file_opened_by_pil(tmp_path: Path) -> None:
    content = png_of(PIL.Image.fromarray(COLOR))[:-30]
    with (
        PIL.Image.open(io.BytesIO(content)) as opened,
        pytest.raises(ValueError, match="metric 'a/b': cannot read the image: "),
    ):
        Image(opened)._capture("a/b")


# Figures


def figure_of(size: tuple[float, float] = (2, 1)) -> Figure:
    figure = Figure(figsize=size, dpi=100)
    figure.add_subplot().plot([1, 2])
    return figure


def test_figure_is_drawn_at_its_size(tmp_path: Path) -> None:
    stored = LoggedImage(tmp_path, Image(figure_of()))
    assert stored.pixels.shape == (100, 200, 4)
    assert stored.pixels[..., :3].std() > 0


def test_figure_keeps_its_canvas() -> None:
    figure = figure_of()
    before = figure.canvas
    Image(figure)._capture("a/b")
    assert figure.canvas is before


@pytest.fixture
def figure() -> Iterator[Figure]:
    """A figure that pyplot manages, without a window."""
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
        lambda figure, close: Image([figure, GRAY], close=close),
        lambda figure, close: Table(["picture"], [[Image(figure, close=close)]]),
    ],
    ids=["alone", "grid", "cell"],
)
def test_pyplot_figure_stays_open_unless_closed_by_argument(
    tmp_path: Path, figure: Figure, made_of: Callable[[Figure, bool], MediaValue], close: bool
) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus:
        bus.log("a/b", made_of(figure, close))
    assert is_open(figure) is not close


def test_figure_stays_open_if_nothing_is_logged(tmp_path: Path, figure: Figure) -> None:
    with MetricBus(sinks=[], dir=tmp_path) as bus, pytest.raises(TypeError, match="metric 'bad'"):
        bus.log({"a": Image(figure, close=True), "bad": object()})
    assert is_open(figure)


def test_figure_is_drawn_at_the_call(tmp_path: Path) -> None:
    figure = figure_of()
    record, sink = logged(tmp_path, ImageRecord, Image(figure), figure.clear)
    assert pixels_of(sink, record.file)[..., :3].std() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda figure: figure.suptitle(r"$\oops$"), "cannot draw the figure"),
        (lambda figure: figure.set_size_inches(200, 200), "20,000 x 20,000"),
    ],
)
def test_rejects_figure_that_cannot_be_drawn(
    change: Callable[[Figure], object], message: str
) -> None:
    figure = figure_of()
    before = figure.canvas
    change(figure)
    with pytest.raises(ValueError, match=f"metric 'a/b'.*{message}"):
        Image(figure)._capture("a/b")
    assert figure.canvas is before


# Grids


def test_several_images_become_a_grid(tmp_path: Path) -> None:
    stored = LoggedImage(tmp_path, Image([GRAY] * 3))
    assert stored.pixels.shape == (4 + 2 + 4, 6 + 2 + 6)
    for row, column in ((0, 0), (0, 8), (6, 0)):
        np.testing.assert_array_equal(stored.pixels[row : row + 4, column : column + 6], GRAY)
    assert not stored.pixels[6:, 8:].any()


@pytest.mark.parametrize(("columns", "size"), [(1, (22, 6)), (4, (4, 30)), (9, (4, 30))])
def test_grid_has_the_given_columns(tmp_path: Path, columns: int, size: tuple[int, int]) -> None:
    assert LoggedImage(tmp_path, Image([GRAY] * 4, columns=columns)).pixels.shape == size


@pytest.mark.parametrize(
    "batch",
    [np.stack([COLOR] * 4), torch.from_numpy(np.stack([COLOR] * 4)).movedim(-1, 1)],
    ids=["NHWC", "NCHW"],
)
def test_batch_becomes_a_grid(tmp_path: Path, batch: Any) -> None:
    stored = LoggedImage(tmp_path, Image(batch))
    np.testing.assert_array_equal(stored.pixels[:4, :6], COLOR)
    assert stored.pixels.shape == (10, 14, 3)


def test_grid_may_mix_sizes_and_channels(tmp_path: Path) -> None:
    figure, tensor = figure_of((0.2, 0.1)), torch.zeros(3, 5, 5)
    stored = LoggedImage(tmp_path, Image([GRAY, PIL.Image.new("RGB", (9, 3)), figure, tensor]))
    assert stored.pixels.shape == (10 + 2 + 10, 20 + 2 + 20, 4)
    assert (stored.pixels[:4, :6, :3] == GRAY[..., None]).all()


@pytest.mark.parametrize("columns", [0, -1, 1.5, True, "2"])
def test_rejects_invalid_columns(columns: Any) -> None:
    with pytest.raises(ValueError, match="metric 'a/b': columns= must be a positive integer"):
        Image([GRAY], columns=columns)._capture("a/b")


def test_rejects_huge_grid_before_copying_it() -> None:
    batch = np.broadcast_to(np.uint8(0), (1000, 6000, 6000, 3))
    with pytest.raises(ValueError, match="metric 'a/b' was given a grid of 1,000 images"):
        Image(batch)._capture("a/b")


# Boxes and masks


def test_boxes_are_stored_and_drawn(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    boxes: list[Any] = [
        Box(5, 5, 20, 30, label=1, score=0.5),
        {"left": 1.5, "top": 2, "right": 3, "bottom": 4},
    ]
    stored = LoggedImage(tmp_path, Image(pixels, boxes=boxes, class_labels={1: "cat"}))
    assert stored.record.boxes == [Box(5, 5, 20, 30, label=1, score=0.5), Box(1.5, 2, 3, 4)]
    assert stored.record.class_labels == {1: "cat"}
    assert not stored.pixels.any()
    assert stored.drawn[5, 5:21].any(axis=1).all()


def test_fractions_are_converted_to_pixels(tmp_path: Path) -> None:
    box = Box(0.25, 0.5, 1, 1, label="cat", fractions=True)
    stored = LoggedImage(tmp_path, Image(np.zeros((40, 60)), boxes=[box]))
    assert stored.record.boxes == [Box(15, 20, 60, 40, label="cat")]


def test_boxes_accept_numpy_and_torch_numbers(tmp_path: Path) -> None:
    sides: list[Any] = [np.float32(1), torch.tensor(2.0), np.int64(3), 4]
    extra: dict[str, Any] = {"label": np.int64(7), "score": np.float32(0.5)}
    box = dict(zip(["left", "top", "right", "bottom"], sides, strict=True)) | extra
    stored = LoggedImage(tmp_path, Image(np.zeros((40, 60)), boxes=[box, Box(*sides, **extra)]))
    assert stored.record.boxes == [Box(1, 2, 3, 4, label=7, score=0.5)] * 2


@pytest.mark.parametrize("side", [1e9, 1e308])
def test_boxes_may_extend_beyond_the_image(tmp_path: Path, side: float) -> None:
    box = Box(-side, -side, side, side)
    assert LoggedImage(tmp_path, Image(GRAY, boxes=[box])).record.boxes == [box]


def test_image_without_annotations_has_no_annotated_copy(tmp_path: Path) -> None:
    assert LoggedImage(tmp_path, Image(GRAY)).record.annotated is None


@pytest.mark.parametrize(
    ("most", "dtype"), [(255, np.uint8), (256, np.int64), (65_535, np.uint16), (1, np.bool_)]
)
def test_masks_are_stored_unchanged(tmp_path: Path, most: int, dtype: Any) -> None:
    mask = (np.arange(24).reshape(4, 6) * most // 23).astype(dtype)
    stored = LoggedImage(
        tmp_path, Image(GRAY, masks={"truth": mask, "guess": torch.from_numpy(mask)})
    )
    for key in ("truth", "guess"):
        np.testing.assert_array_equal(stored.masks[key], mask)
    assert (stored.drawn != GRAY[..., None]).any()


def test_class_0_of_a_mask_is_not_drawn(tmp_path: Path) -> None:
    stored = LoggedImage(tmp_path, Image(COLOR, masks={"m": np.zeros((4, 6), int)}))
    np.testing.assert_array_equal(stored.drawn, COLOR)


@pytest.mark.parametrize("number", [-1, 65_536])
def test_mask_with_invalid_classes_is_dropped(tmp_path: Path, number: int) -> None:
    report = report_of(tmp_path, Image(GRAY, masks={"m": np.full((4, 6), number)}))
    assert (report.journalled, report.dropped) == (1, 1)
    assert "the mask 'm' has classes outside 0 to 65,535" in (report.error or "")


def test_mask_of_another_size_than_the_file_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(GRAY).save(path)
    report = report_of(tmp_path, Image(path, masks={"m": np.zeros((5, 5), int)}))
    assert report.dropped == 1
    assert "the mask 'm' is 5 x 5, but its image is 6 x 4" in (report.error or "")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box(0, 0, math.nan, 1), "must be finite, with left <= right and top <= bottom"),
        (Box(0, 0, math.inf, 1), "must be finite, with left <= right and top <= bottom"),
        (Box(2, 0, 1, 1), "left <= right"),
        (Box(0, 2, 1, 1), "top <= bottom"),
        (Box(0, 0, 1.5, 1, fractions=True), "fractions must be from 0 to 1"),
        (Box(-0.5, 0, 1, 1, fractions=True), "fractions must be from 0 to 1"),
        (Box(0, 0, 1, 1, score=math.nan), "the score of a box must be finite, not nan"),
        (Box(0, 0, 1, 1, label="\ud800"), "the label of a box cannot be encoded"),
        (Box(0, 0, 1, 1, caption="\ud800"), "the caption of a box cannot be encoded"),
        (Box(0, 0, 1, 1, label=1 << 64), "a class must be a 64-bit integer"),
        (Box(0, 0, 1, 1, label=True), "is not a valid box .*expected Box"),
        ({"left": 0}, "is not a valid box .*`top`.*expected Box"),
        ({"left": 0, "top": 0, "right": 1, "bottom": 1, "lable": 1}, "no field 'lable'"),
        (Box("0", 0, 1, 1), "is not a valid box .*expected Box"),  # type: ignore[arg-type]
        (Box(np.zeros(3), 0, 1, 1), "is not a valid box .*expected Box"),  # type: ignore[arg-type]
        ([0, 0, 1, 1], "is not a valid box .*expected Box"),
    ],
    ids=repr,
)
def test_rejects_invalid_boxes(box: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"metric 'a/b'.*{message}"):
        Image(GRAY, boxes=[box])._capture("a/b")


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"boxes": Box(0, 0, 1, 1)}, "boxes= must be a list of .*, not Box"),
        ({"boxes": {"left": 0}}, "boxes= must be a list of .*, not dict"),
        ({"boxes": np.zeros((2, 4))}, "boxes= must be a list of .*, not ndarray"),
        ({"masks": [GRAY]}, "masks= must be a dict, not list"),
        ({"masks": GRAY}, "masks= must be a dict, not ndarray"),
        ({"masks": {"m": np.zeros((4, 6))}}, "the mask 'm' is .*float64; expected integers"),
        ({"masks": {"m": np.zeros((4, 6, 1), int)}}, "the mask 'm' is .*two axes"),
        ({"masks": {"m": np.zeros((6, 4), int)}}, "the mask 'm' is 4 x 6, but its image is 6 x 4"),
        ({"masks": {"m": [[1, 2], [3]]}}, "cannot be converted to an array"),
        ({"masks": {3: GRAY}}, "a mask's name must be a string, not int"),
        ({"masks": {"\ud800": GRAY}}, "a mask's name cannot be encoded"),
        ({"class_labels": ["cat"]}, "class_labels= must be a dict, not list"),
        ({"class_labels": {"1": "cat"}}, "names; '1' is not an integer"),
        ({"class_labels": {1: 2}}, "a class's name must be a string, not int"),
        ({"class_labels": {1: "\ud800"}}, "a class's name cannot be encoded"),
        ({"class_labels": {1 << 64: "cat"}}, "a class must be a 64-bit integer"),
    ],
)
def test_rejects_invalid_annotations(annotations: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b'.*{message}"):
        Image(GRAY, **annotations)._capture("a/b")


@pytest.mark.parametrize("annotations", [{"boxes": [Box(0, 0, 1, 1)]}, {"masks": {"m": GRAY}}])
def test_rejects_annotations_of_a_grid(annotations: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="metric 'a/b': a grid cannot have boxes or masks"):
        Image([GRAY], **annotations)._capture("a/b")


# Bad input


@pytest.mark.parametrize("shape", [(20_000, 20_000), (20_000, 20_000, 3), (3, 20_000, 20_000)])
def test_rejects_huge_image_before_copying_it(shape: tuple[int, ...]) -> None:
    huge = np.broadcast_to(np.uint8(0), shape)
    with pytest.raises(ValueError, match="metric 'a/b' was given an image of 20,000 x 20,000"):
        Image(huge)._capture("a/b")


SHAPES = "expected height and width, with 1, 3 or 4 channels first or last"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), rf"ndarray of shape \(3,\) and dtype float64; {SHAPES}"),
        (np.zeros((5, 5, 2)), rf"ndarray of shape \(5, 5, 2\) and dtype float64; {SHAPES}"),
        (torch.zeros(2, 5, 5), rf"Tensor of shape \(2, 5, 5\).*; {SHAPES}"),
        (np.zeros((1, 2, 3, 4, 5)), SHAPES),
        (np.zeros((0, 5)), rf"an empty image of shape \(0, 5\); {SHAPES}"),
        (np.zeros((0, 5, 5, 3)), "no image; expected an array"),
        ([], "no image; expected an array"),
        (3, SHAPES),
        (np.zeros((5, 5), int), "dtype int64; expected pixels as uint8, or as floats from 0 to 1"),
        ([[1, 2], [3, 4]], "list; expected pixels as uint8, or as floats"),
        (np.zeros((5, 5), complex), "dtype complex128; expected an array"),
        (np.array([[None]]), "dtype object; expected an array"),
        ([[0.1, 0.2], [0.3]], "list, which cannot be converted to an array"),
        (torch.zeros(5, 5, device="meta"), "Tensor of shape .*expected an array"),
        (None, "NoneType; expected an array"),
        ([GRAY, None], "NoneType; expected an array"),
        (b"bytes", "bytes; expected an array"),
        ({"a": 1}, "dict; expected an array"),
        ((x for x in [GRAY]), "generator; expected an array"),
    ],
)
def test_rejects_invalid_images(data: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b' was given .*{message}"):
        Image(data)._capture("a/b")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("CHW", r"ndarray of shape \(4, 6\).* for layout='CHW'"),
        ("XYZ", 'layout= must be "HW", "HWC" or "CHW", not \'XYZ\''),
        (3, "layout= must be .* not 3"),
    ],
)
def test_rejects_layout_that_does_not_fit(layout: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"metric 'a/b'.*{message}"):
        Image(GRAY, layout=layout)._capture("a/b")


def test_failing_encoder_is_counted_as_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(image: object) -> bytes:
        raise MemoryError("no room for a PNG")

    monkeypatch.setattr(sys.modules["metricbus.media.png"], "png_of", fail)
    with caplog.at_level(logging.WARNING, "metricbus.media"):
        report = report_of(tmp_path, Image(GRAY))
    assert (report.journalled, report.dropped, report.waiting) == (1, 1, 0)
    assert report.error == "'a/b' at step 0 was dropped: MemoryError: no room for a PNG"
    assert warnings_of(caplog) == [report.error]

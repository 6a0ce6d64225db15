"""Tests of `Text`, `Audio`, `Video`, `Chart` and `File`."""

from __future__ import annotations

import io
import math
import os
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from metricbus import Audio, Chart, File, Histogram, Image, MetricBus, Table, Text, Video
from metricbus._common.media_base import MediaValue
from metricbus._common.media_records import (
    AudioRecord,
    ChartRecord,
    FileRecord,
    FileRef,
    TextRecord,
    VideoRecord,
)
from metricbus.testing import MemorySink
from tests.helpers.media_logging import logged, report_of, warnings_of

Array = NDArray[Any]

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)


def assert_rejected(medium: MediaValue, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"metric 'a/b'.*{message}") as caught:
        medium._capture("a/b")
    assert len(str(caught.value)) < 600


# Text


@pytest.mark.parametrize(
    "text", ["", "# Title\n\n*text*\r\n", "\x00 \u2028 \U0001f600", "x" * 10**6]
)
def test_text_is_stored_unchanged(tmp_path: Path, text: str) -> None:
    record, sink = logged(tmp_path, TextRecord, Text(text))
    assert sink.files.read(record.file) == text.encode()
    assert record.length == len(text)


@pytest.mark.parametrize(
    ("text", "start"),
    [("short", "short"), ("two\n  lines", "two lines"), ("x" * 81, "x" * 80 + "…"), ("", "")],
)
def test_text_record_has_its_start_on_one_line(tmp_path: Path, text: str, start: str) -> None:
    record, _ = logged(tmp_path, TextRecord, Text(text))
    assert record.start == start


@pytest.mark.parametrize(
    ("text", "message"), [(5, "not int"), (None, "not NoneType"), ("\ud800", "encoded as UTF-8")]
)
def test_rejects_invalid_text(text: Any, message: str) -> None:
    assert_rejected(Text(text), message)


# Audio


def pcm_of(sink: MemorySink, record: AudioRecord) -> Array:
    with wave.open(io.BytesIO(sink.files.read(record.file))) as opened:
        assert opened.getsampwidth() == 2
        assert opened.getframerate() == record.sample_rate
        assert opened.getnframes() == record.frames
        assert opened.getnchannels() == record.channels
        samples = np.frombuffer(opened.readframes(opened.getnframes()), "<i2")
    return samples.reshape(record.frames, record.channels)


@given(arrays.arrays(np.int16, st.tuples(st.integers(3, 40), st.integers(1, 3))))
@settings(max_examples=15, deadline=None)
def test_16_bit_samples_are_stored_unchanged(
    tmp_path_factory: pytest.TempPathFactory, samples: Array
) -> None:
    record, sink = logged(tmp_path_factory.mktemp("run"), AudioRecord, Audio(samples, 8000))
    np.testing.assert_array_equal(pcm_of(sink, record), samples)


@pytest.mark.parametrize(
    ("shape", "frames", "channels"),
    [((9,), 9, 1), ((9, 1), 9, 1), ((1, 9), 9, 1), ((9, 2), 9, 2), ((2, 9), 9, 2), ((2, 2), 2, 2)],
)
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_longer_axis_is_the_time_axis(
    tmp_path: Path, shape: tuple[int, ...], frames: int, channels: int, make: Any
) -> None:
    samples = RANDOM.integers(-100, 100, shape, dtype=np.int16)
    record, sink = logged(tmp_path, AudioRecord, Audio(make(samples), 44_100, "bell"))
    assert (record.frames, record.channels, record.sample_rate) == (frames, channels, 44_100)
    assert (record.caption, record.format) == ("bell", "wav")
    expected = samples.T if shape[0] < shape[-1] else samples
    np.testing.assert_array_equal(pcm_of(sink, record), expected.reshape(frames, channels))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_scaled_to_16_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    record, sink = logged(tmp_path, AudioRecord, Audio(np.array([-1, -0.5, 0, 1], dtype), 8000))
    assert pcm_of(sink, record).ravel().tolist() == [-32_767, -16_384, 0, 32_767]
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("samples", "pcm", "message"),
    [
        ([-2.0, 3.0], [-32_767, 32_767], "samples outside -1 to 1 are clipped"),
        ([-math.inf, 1e300], [-32_767, 32_767], "samples outside -1 to 1 are clipped"),
        ([math.nan, 1.0], [0, 32_767], "NaN samples are replaced with silence"),
    ],
)
def test_warns_once_about_repaired_samples(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    samples: list[float],
    pcm: list[int],
    message: str,
) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for _ in range(2):
            bus.log("a/b", Audio(samples, 8000))
    assert warnings_of(caplog) == [f"'a/b' at step 0: {message}"]
    for record in sink.media("a/b"):
        assert isinstance(record, AudioRecord)
        assert pcm_of(sink, record).ravel().tolist() == pcm


def test_samples_are_copied_at_the_call(tmp_path: Path) -> None:
    samples = np.ones((2, 9), np.int16)
    record, sink = logged(tmp_path, AudioRecord, Audio(samples, 8000), lambda: samples.fill(5))
    assert (pcm_of(sink, record) == 1).all()


def test_wav_file_is_copied_with_its_format(tmp_path: Path) -> None:
    path = tmp_path / "bell.WAV"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(3)
        file.setframerate(8000)
        file.writeframes(b"abcdef" * 10)
    record, sink = logged(tmp_path, AudioRecord, Audio(path))
    assert sink.files.read(record.file) == path.read_bytes()
    assert (record.format, record.frames, record.channels) == ("wav", 10, 2)
    assert record.sample_rate == 8000


@pytest.mark.parametrize("suffix", ["wav", "mp3", "ogg", "flac", "m4a", "opus"])
def test_unreadable_audio_file_is_copied_unchanged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bell.{suffix}"
    path.write_bytes(b"not really RIFF")
    record, sink = logged(tmp_path, AudioRecord, Audio(str(path)))
    assert sink.files.read(record.file) == path.read_bytes()
    assert (record.format, record.sample_rate, record.frames) == (suffix, 0, 0)


SAMPLES = "expected samples as int16, or as floats from -1 to 1"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(0), rf"ndarray of shape \(0,\) and dtype float64; {SAMPLES}"),
        (np.zeros((5, 0)), SAMPLES),
        (np.zeros((5, 5, 5)), SAMPLES),
        (0.5, SAMPLES),
        (np.zeros(5, np.int32), f"dtype int32; {SAMPLES}"),
        ([1, 2, 3], rf"list of shape \(3,\) and dtype int64; {SAMPLES}"),
        (np.zeros(5, bool), f"dtype bool; {SAMPLES}"),
        (np.zeros(5, complex), "dtype complex128; expected samples"),
        (np.array([None]), "dtype object; expected samples"),
        ([[0.1, 0.2], [0.3]], "list, which cannot be converted to an array"),
        (None, "NoneType; expected samples"),
        (np.zeros((50, 17)), "17 channels; the maximum is 16"),
    ],
)
def test_rejects_invalid_samples(data: Any, message: str) -> None:
    assert_rejected(Audio(data, 8000), message)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (0, "sample_rate= must be from 1 to 67,108,864, not 0"),
        (-8000, "sample_rate= must be from 1 to .*, not -8,000"),
        (1 << 31, "sample_rate= must be from 1 to"),
        (None, "sample_rate= must be an integer number of samples per second, not None"),
        (True, "sample_rate= must be an integer .*, not True"),
        (8000.0, "sample_rate= must be an integer .*, not 8000.0"),
        ("8000", "sample_rate= must be an integer .*, not '8000'"),
    ],
)
def test_rejects_invalid_sample_rate(rate: Any, message: str) -> None:
    assert_rejected(Audio(np.zeros(5), rate), message)


@pytest.mark.parametrize("rate", [1, 1 << 26, np.int64(8000)])
def test_accepts_extreme_sample_rates(tmp_path: Path, rate: int) -> None:
    record, _ = logged(tmp_path, AudioRecord, Audio(np.zeros((50, 16)), rate))
    assert record.sample_rate == rate


# Video


def gif_of(sink: MemorySink, record: VideoRecord) -> PIL.Image.Image:
    opened = PIL.Image.open(io.BytesIO(sink.files.read(record.file)))
    assert opened.format == "GIF"
    return opened


def durations_of(gif: PIL.Image.Image) -> list[int]:
    durations = []
    for number in range(getattr(gif, "n_frames", 1)):
        gif.seek(number)
        durations.append(gif.info["duration"])
    return durations


@pytest.mark.parametrize(
    "frames",
    [
        FRAMES,
        FRAMES[..., 0],
        FRAMES[..., :1],
        np.moveaxis(FRAMES, -1, 1),
        FRAMES / 255,
        FRAMES > 99,
        torch.from_numpy(FRAMES).movedim(-1, 1),
        list(FRAMES),
        np.repeat(FRAMES, 2, -1)[..., :4],
    ],
    ids=["THWC", "THW", "THW1", "TCHW", "float", "bool", "torch", "list", "RGBA"],
)
def test_frames_become_a_gif(tmp_path: Path, frames: Any) -> None:
    record, sink = logged(tmp_path, VideoRecord, Video(frames, 10, "clip"))
    gif = gif_of(sink, record)
    assert (gif.size, getattr(gif, "n_frames", 1)) == ((6, 5), 3)
    assert (record.width, record.height, record.frames) == (6, 5, 3)
    assert (record.fps, record.format, record.caption) == (10.0, "gif", "clip")


def test_gray_frames_are_stored_unchanged(tmp_path: Path) -> None:
    record, sink = logged(tmp_path, VideoRecord, Video(FRAMES[..., 0]))
    gif = gif_of(sink, record)
    for number, frame in enumerate(FRAMES[..., 0]):
        gif.seek(number)
        np.testing.assert_array_equal(np.asarray(gif.convert("L")), frame)


def test_frames_of_few_colors_are_stored_unchanged(tmp_path: Path) -> None:
    record, sink = logged(tmp_path, VideoRecord, Video(FRAMES))
    gif = gif_of(sink, record)
    for number, frame in enumerate(FRAMES):
        gif.seek(number)
        np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frame)


@pytest.mark.parametrize(
    ("fps", "durations"),
    [
        (4, [250, 250, 250]),
        (30, [30, 40, 30]),
        (100, [10, 10, 10]),
        (0.01, [100_000, 100_000, 100_000]),
        (3, [330, 340, 330]),
        (np.float32(2), [500, 500, 500]),
    ],
)
def test_frame_durations_follow_the_rate(tmp_path: Path, fps: float, durations: list[int]) -> None:
    record, sink = logged(tmp_path, VideoRecord, Video(FRAMES, fps))
    assert durations_of(gif_of(sink, record)) == durations


def test_merged_equal_frames_keep_their_total_duration(tmp_path: Path) -> None:
    record, sink = logged(tmp_path, VideoRecord, Video(np.zeros((8, 5, 6)), 4))
    assert sum(durations_of(gif_of(sink, record))) == 2000
    assert record.frames == 8


@pytest.mark.parametrize(("frames", "fps"), [(3000, 4), (8, 0.01)])
def test_warns_about_too_long_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, frames: int, fps: float
) -> None:
    record, sink = logged(tmp_path, VideoRecord, Video(np.zeros((frames, 5, 6)), fps))
    assert durations_of(gif_of(sink, record)) == [655_350]
    message = "frames longer than 655 seconds are shown for 655 seconds"
    assert warnings_of(caplog) == [f"'a/b' at step 0: {message}"]


def test_transparent_frames_are_shown_on_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = np.full((2, 5, 6, 4), 255, np.uint8)
    frames[1, ..., 3] = 0
    record, sink = logged(tmp_path, VideoRecord, Video(frames))
    gif = gif_of(sink, record)
    gif.seek(1)
    assert not np.asarray(gif.convert("RGB")).any()
    assert warnings_of(caplog) == [
        "'a/b' at step 0: videos have no transparency; it is shown on black"
    ]


def test_warns_about_clipped_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logged(tmp_path, VideoRecord, Video(np.full((2, 5, 6), 7.0)))
    assert warnings_of(caplog) == [
        "'a/b' at step 0: pixels outside 0 to 1 are clipped (if yours are 0 to 255, divide by 255)"
    ]


def test_frames_are_copied_at_the_call(tmp_path: Path) -> None:
    frames = np.zeros((1, 5, 6), np.uint8)
    record, sink = logged(tmp_path, VideoRecord, Video(frames), lambda: frames.fill(255))
    assert not np.asarray(gif_of(sink, record).convert("L")).any()


@pytest.mark.parametrize("suffix", ["mp4", "GIF", "webm", "ogg", "mov", "avi", "mkv"])
def test_video_file_is_copied_unchanged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"video.{suffix}"
    path.write_bytes(bytes(range(256)) * 9000)
    record, sink = logged(tmp_path, VideoRecord, Video(path, caption="clip"))
    assert sink.files.read(record.file) == path.read_bytes()
    assert (record.format, record.frames, record.caption) == (suffix.lower(), 0, "clip")


VIDEO = r"expected frames \(T, H, W, C\) or \(T, C, H, W\) as uint8"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((5, 6)), rf"ndarray of shape \(5, 6\) and dtype float64; {VIDEO}"),
        (np.zeros((0, 5, 6)), VIDEO),
        (np.zeros((2, 5, 6, 3, 1)), VIDEO),
        (np.zeros((2, 5, 6, 2)), "1, 3 or 4 channels"),
        (np.zeros((2, 5, 6), int), "dtype int64; expected pixels as uint8, or as floats"),
        (np.zeros((2, 5, 6), complex), "dtype complex128; expected frames"),
        (np.array([None]), "dtype object; expected frames"),
        ([np.zeros((5, 6)), np.zeros((5, 7))], "list, which cannot be converted to an array"),
        (None, "NoneType; expected frames"),
        (np.broadcast_to(np.uint8(0), (2, 20_000, 20_000)), "up to 268,435,456 elements in total"),
        (np.broadcast_to(np.uint8(0), (1, 16_000, 16_000)), "an image of 16,000 x 16,000"),
    ],
)
def test_rejects_invalid_frames(data: Any, message: str) -> None:
    assert_rejected(Video(data), message)


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, 101, 0.001, True, None, "4"])
def test_rejects_invalid_frame_rate(fps: Any) -> None:
    assert_rejected(Video(FRAMES, fps), r"fps= must be a number from 0.01 to 100, not ")


# Charts

TABLE = Table(
    ["epoch", "train", "_val", "class", "guess"],
    [[0, 1.5, 2, "cat", "dog"], [1, 0.5, None, "dog", "dog"], [2, math.nan, 1, "$cat", "cat"]],
)


@pytest.mark.parametrize(
    "chart",
    [
        Chart(TABLE),
        Chart(TABLE, "line", "epoch", ["train", "_val"], "curves of $x"),
        Chart(TABLE, "line", x="class", y="train"),
        Chart(TABLE, "scatter", x="train", y=("_val", "epoch")),
        Chart(TABLE, "bar", x="class", y=["train", "_val"]),
        Chart(TABLE, "histogram", x="train"),
        Chart(TABLE, "confusion", x="class", y="guess"),
        Chart(TABLE, "confusion", x="_val"),
    ],
    ids=lambda chart: f"{chart._kind} of {chart._x}",
)
def test_every_kind_of_chart_is_drawn_and_has_its_data(tmp_path: Path, chart: Chart) -> None:
    record, sink = logged(tmp_path, ChartRecord, chart)
    image = PIL.Image.open(io.BytesIO(sink.files.read(record.picture)))
    assert (image.format, image.size) == ("PNG", (record.width, record.height))
    assert np.asarray(image.convert("L")).std() > 0
    assert record.columns == TABLE.columns
    assert record.rows == 3
    assert [str(row) for row in sink.files.rows(record)] == [str(list(row)) for row in TABLE.rows]


@pytest.mark.parametrize(
    ("chart", "x", "y"),
    [
        (Chart(TABLE), "epoch", ["train", "_val"]),
        (Chart(TABLE, x="class"), "class", ["epoch", "train", "_val"]),
        (Chart(TABLE, y="train"), "epoch", ["train"]),
        (Chart(TABLE, "histogram"), "epoch", []),
        (Chart(TABLE, "confusion", x="class"), "class", ["epoch"]),
    ],
)
def test_default_columns_are_the_numeric_ones(
    tmp_path: Path, chart: Chart, x: str, y: list[str]
) -> None:
    record, _ = logged(tmp_path, ChartRecord, chart)
    assert (record.x_column, record.y_columns) == (x, y)


def test_draws_a_chart_of_many_columns(tmp_path: Path) -> None:
    logged(tmp_path, ChartRecord, Chart({f"c{number}": [1, 2] for number in range(300)}))


def test_chart_accepts_the_arguments_of_a_table(tmp_path: Path) -> None:
    record, sink = logged(tmp_path, ChartRecord, Chart({"x": [1, 2], "y": [3, 4]}, title="t"))
    assert sink.files.rows(record) == [[1, 3], [2, 4]]
    assert (record.chart, record.title) == ("line", "t")


@pytest.mark.parametrize("kind", ["line", "scatter", "bar", "histogram", "confusion"])
@pytest.mark.parametrize(
    "column",
    [[math.nan, math.inf], [None, None], [1, 1], [2**63 - 1, -(2**63)], [5e-324, 0], [True, False]],
    ids=str,
)
def test_draws_extreme_numbers(tmp_path: Path, kind: Any, column: list[Any]) -> None:
    logged(tmp_path, ChartRecord, Chart({"x": column, "y": column}, kind, "x"))


def test_rows_are_copied_at_the_call(tmp_path: Path) -> None:
    table = Table(["x", "y"], [[1, 2]])
    record, sink = logged(tmp_path, ChartRecord, Chart(table), lambda: table.append([3, 4]))
    assert sink.files.rows(record) == [[1, 2]]


@pytest.mark.parametrize(
    ("chart", "message"),
    [
        (Chart(TABLE, "pie"), "kind= must be one of line, .*confusion, not 'pie'"),  # type: ignore[arg-type]
        (Chart(TABLE, x="no"), "no column 'no'; it has epoch, train, _val, class, guess"),
        (Chart(TABLE, y="no"), "no column 'no'; it has epoch"),
        (Chart(TABLE, y=["train", 5]), "no column 5; it has epoch"),  # type: ignore[list-item]
        (Chart(TABLE, y=[]), "a line chart needs a y= column in addition to x='epoch'"),
        (Chart(TABLE, y="class"), "the column 'class' must contain only numbers and None"),
        (
            Chart(TABLE, "histogram", x="class"),
            "the column 'class' must contain only numbers and None",
        ),
        (
            Chart(TABLE, "confusion", y=["class", "guess"]),
            "must be the column of predicted classes, or a list",
        ),
        (
            Chart({"x": range(201), "y": range(201)}, "confusion"),
            "has 201 classes; the maximum is 200",
        ),
        (Chart({"x": [1]}), "a line chart needs a y="),
        (Chart(Table(["x", "y"])), "the table of a chart must have at least one row"),
        (Chart(Table(["x", "x"], [[1, 2]])), "the column 'x' twice"),
        (Chart(Table(["x", "y"], [[1, 2], [3]])), "row 1 has 1 cells"),
        (Chart(TABLE, title="\ud800"), "title= cannot be encoded as UTF-8"),
        (Chart(TABLE, title=5), "title= must be a string, not int"),  # type: ignore[arg-type]
    ],
)
def test_rejects_invalid_charts(chart: Chart, message: str) -> None:
    assert_rejected(chart, message)


@pytest.mark.parametrize("y", [5, 0.5, {"train"}])
def test_constructor_rejects_invalid_y(y: Any) -> None:
    with pytest.raises(TypeError, match="y= must be a column name or a list of them, not "):
        Chart(TABLE, y=y)


def test_chart_that_fails_to_draw_is_counted_as_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends = {"x": [0, 1], "y": [-1.7e308, 1.7e308]}
    report = report_of(tmp_path, Chart(ends))
    assert report.waiting == 0
    assert warnings_of(caplog) == ([report.error] if report.dropped else [])


# Files


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("content", [b"", b"weights" * 1_000_000])
def test_file_record_has_path_and_size(tmp_path: Path, copy: bool, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    record, sink = logged(tmp_path, FileRecord, File(path, copy=copy))
    assert (record.origin, record.copied, record.file.size) == (str(path), copy, len(content))
    assert (record.file.path == str(path)) is not copy
    assert sink.files.read(record.file) == content


def test_copy_outlives_the_original(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    record, sink = logged(tmp_path, FileRecord, File(path, copy=True))
    path.unlink()
    assert sink.files.read(record.file) == b"weights"


def test_relative_path_becomes_absolute(tmp_path: Path) -> None:
    Path("weights.pt").write_bytes(b"weights")
    record, _ = logged(tmp_path, FileRecord, File("weights.pt"))
    assert record.origin == str(tmp_path / "weights.pt")


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"weights")
    (tmp_path / "latest").symlink_to(tmp_path / "weights.pt")
    record, sink = logged(tmp_path, FileRecord, File(tmp_path / "latest", copy=True))
    assert sink.files.read(record.file) == b"weights"


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [(_grow, "has changed since it was logged"), (Path.unlink, "No such file")],
)
def test_file_that_changes_before_it_is_read_is_dropped(
    tmp_path: Path, change: Callable[[Path], None], message: str, copy: bool
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")

    class Changed(File):
        """A file that changes right after `log()` has checked it."""

        def _capture(self, name: str) -> Any:
            job = super()._capture(name)
            change(path)
            return job

    report = report_of(tmp_path, Changed(path, copy=copy))
    assert (report.journalled, report.dropped, report.waiting) == (1, 1, 0)
    assert "'a/b' at step 0 was dropped" in (report.error or "")
    assert message in (report.error or "")


KINDS: list[Callable[[Any], MediaValue]] = [File, Audio, Video, Image]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.pt", "cannot read '.*missing.pt': No such file or directory; expected the path"),
        ("/dev/zero", "/dev/zero is not a regular file; expected the path of a regular file"),
        (".", "is a directory; expected the path of a regular file"),
        ("nul\0", "cannot read .*: embedded null byte"),
        ("\ud800", "cannot read .*: 'utf-8' codec"),
        ("long" * 5000, "cannot read .*: File name too long"),
    ],
)
def test_rejects_invalid_path(kind: Callable[[Any], MediaValue], path: str, message: str) -> None:
    assert_rejected(kind(path), message)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode on other systems")
def test_rejects_path_that_is_not_unicode(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.pt"
    with open(path, "wb"):
        pass
    assert_rejected(File(os.fsdecode(path)), "the path cannot be encoded as UTF-8")


def test_rejects_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert_rejected(Audio(tmp_path / "pipe.wav"), "is not a regular file")


@pytest.mark.parametrize("path", [None, 5, b"weights.pt"])
def test_rejects_non_path(path: Any) -> None:
    assert_rejected(File(path), r"File\(\) requires a path, not ")


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Audio, "is not an audio file.*.wav"), (Video, "is not a video file.*.mp4")],
)
def test_rejects_unsupported_file_format(
    tmp_path: Path, kind: Callable[[Any], MediaValue], message: str
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("text")
    assert_rejected(kind(path), message)


# All of them


@pytest.mark.parametrize(
    "medium",
    [
        lambda caption: Audio(np.zeros(5), 8000, caption),
        lambda caption: Video(FRAMES, 4, caption),
        lambda caption: Image(FRAMES[0], caption),
    ],
    ids=["Audio", "Video", "Image"],
)
@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("\ud800", "cannot be encoded as UTF-8"),
        (5, "must be a string, not int"),
        (None, "must be a string, not NoneType"),
        (b"x", "must be a string, not bytes"),
    ],
)
def test_rejects_invalid_caption(
    medium: Callable[[Any], MediaValue], caption: Any, message: str
) -> None:
    assert_rejected(medium(caption), f"caption= {message}")


@pytest.mark.parametrize(
    "bad",
    [
        Text(5),  # type: ignore[arg-type]
        Audio(np.zeros(5), 0),
        Video(None),
        Chart(TABLE, x="no"),
        File("no"),
        MediaValue(),
        Histogram("no"),
        Image(np.zeros((5, 5, 2))),
        Image("missing.png"),
        Image(np.array([[None]])),
    ],
    ids=lambda medium: type(medium).__name__,
)
def test_invalid_medium_prevents_logging_of_the_whole_mapping(
    tmp_path: Path, bad: MediaValue
) -> None:
    sink = MemorySink()
    bus = MetricBus(sinks=[sink], dir=tmp_path)
    with pytest.raises((TypeError, ValueError), match="metric 'c/d'"):
        bus.log({"loss": 1.0, "a": Text("good"), "c": {"d": bad}, "e": Text("good")})
    bus.close()
    assert sink.records == []
    assert bus.stats().logged == 0


def test_files_of_path_like_names_stay_in_the_media_folder(tmp_path: Path) -> None:
    sink = MemorySink()
    names = ["../../up", "/abs", ".hidden", "a b", "ü" * 300, "."]
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log({name: Text(name) for name in names})
    assert bus.dir is not None
    for name in names:
        (record,) = sink.media(name)
        assert isinstance(record, TextRecord)
        ref: FileRef = record.file
        assert sink.files.text(ref) == name
        assert (bus.dir / ref.path).resolve().is_relative_to(bus.dir / "media")


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_confusion_matrix_becomes_a_table_of_counts(tmp_path: Path, make: Any) -> None:
    counts = np.array([[5, 1, 0], [2, 7, 0], [0, 0, 9]])
    chart = Chart(make(counts), "confusion", labels=["cat", "ant", "bat"])
    record, sink = logged(tmp_path, ChartRecord, chart)
    assert (record.x_column, record.y_columns) == ("class", ["guess", "count"])
    rows = sink.files.rows(record)
    assert rows[:4] == [["cat", "cat", 5], ["cat", "ant", 1], ["cat", "bat", 0], ["ant", "cat", 2]]


@pytest.mark.parametrize(
    ("array", "y"),
    [(np.eye(2), ["guess", "count"]), (np.array([[0, 1], [1, 1], [0, 0]]), ["1"])],
    ids=["matrix", "examples"],
)
def test_2x2_array_is_a_matrix_and_two_columns_are_examples(
    tmp_path: Path, array: Array, y: list[str]
) -> None:
    record, _ = logged(tmp_path, ChartRecord, Chart(array, "confusion"))
    assert record.y_columns == y


@pytest.mark.parametrize(
    ("matrix", "options", "error", "message"),
    [
        (np.ones((3, 4)), {}, ValueError, "a square matrix of non-negative numbers"),
        (-np.eye(3), {}, ValueError, "a square matrix of non-negative numbers"),
        (np.full((3, 3), math.nan), {}, ValueError, "a square matrix of non-negative numbers"),
        (np.ones((3, 3, 3)), {}, ValueError, "a square matrix of non-negative numbers"),
        (np.eye(3), {"labels": ["a"]}, ValueError, "labels= has 1 names for 3 classes"),
        ({"x": [1], "y": [2]}, {"labels": ["a"]}, TypeError, "labels= requires a matrix"),
    ],
)
def test_rejects_invalid_confusion_matrix(
    matrix: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Chart(matrix, "confusion", **options)

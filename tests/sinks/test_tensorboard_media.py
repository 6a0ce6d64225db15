"""What media become in TensorBoard, read back by its own readers."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import urllib.request
import warnings
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util import tensor_util

from metricbus import Run
from metricbus._common.media_records import (
    AudioRecord,
    Box,
    Cell,
    FileRecord,
    FileRef,
    HistogramRecord,
    Picture,
)
from metricbus._common.records import Rewind
from metricbus._journal.media_files import MediaWriter
from metricbus.errors import MediaError
from metricbus.sinks.tensorboard.sink import TensorBoardSink
from tests.helpers.media_records import (
    HISTOGRAM,
    PIXELS,
    at,
    audio,
    chart,
    film,
    image,
    png,
    row,
    table,
    text,
)

with warnings.catch_warnings():  # of the HTML cleaner that it brings along
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard import plugin_util

RUN = Run(id="r", name="r", host="h", pid=1, started=1_700_000_000 * 10**9)


@pytest.fixture
def writer(tmp_path: Path) -> MediaWriter:
    return MediaWriter(tmp_path, "0-1")


def opened(
    folder: Path, state: dict[str, Any] | None = None, location: Path | str = ""
) -> TensorBoardSink:
    sink = TensorBoardSink(str(location))
    sink.open(RUN, folder, state or {})
    return sink


def written(folder: Path, *records: Any) -> EventAccumulator:
    sink = opened(folder)
    sink.write(records)
    sink.flush()
    sink.close("finished")
    return read(folder)


def read(folder: Path, lane: str = "") -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard" / lane), size_guidance={"images": 0})
    found.Reload()
    return found


def events(folder: Path, lane: str = "", place: Path | None = None) -> list[Event]:
    return [
        event
        for file in sorted(((place or folder / "tensorboard") / lane).glob("*tfevents*"))
        for event in map(Event.FromString, RawEventFileLoader(str(file)).Load())
        if event.HasField("summary")
    ]


def tags(folder: Path, lane: str = "", place: Path | None = None) -> list[tuple[str, int]]:
    found = events(folder, lane, place)
    return [(value.tag, event.step) for event in found for value in event.summary.value]


def shown(found: EventAccumulator, tag: str) -> str:
    (event,) = found.Tensors(tag)
    return str(tensor_util.make_ndarray(event.tensor_proto).item().decode())


def test_a_histogram_has_its_exact_counts_and_edges(tmp_path: Path) -> None:
    written(tmp_path, HISTOGRAM)
    (event,) = events(tmp_path)
    histo = event.summary.value[0].histo
    assert list(histo.bucket_limit) == HISTOGRAM.edges
    assert list(histo.bucket) == [0, *HISTOGRAM.counts]
    assert (histo.num, histo.min, histo.max) == (
        HISTOGRAM.count,
        HISTOGRAM.minimum,
        HISTOGRAM.maximum,
    )
    assert (histo.sum, histo.sum_squares) == (HISTOGRAM.sum, HISTOGRAM.sum_squares)


def test_a_histogram_is_shown_as_one(tmp_path: Path) -> None:
    record = HistogramRecord(
        **at(3), counts=[1, 2], edges=[0.0, 1.0, 2.0], count=3, minimum=0.0, maximum=2.0
    )
    (event,) = written(tmp_path, record).Histograms("x")
    assert event.step == 3
    assert event.histogram_value.num == 3


def test_a_histogram_of_nothing_is_an_event_without_bins(tmp_path: Path) -> None:
    written(tmp_path, HistogramRecord(**at(0), counts=[], edges=[], count=0, nan=4))
    (event,) = events(tmp_path)
    assert list(event.summary.value[0].histo.bucket) == []


def test_what_is_in_no_bin_is_told_in_a_text(tmp_path: Path) -> None:
    record = HistogramRecord(**at(0), counts=[1], edges=[0.0, 1.0], count=1, nan=4, infinite=1)
    found = written(tmp_path, record)
    assert shown(found, "x/caption") == "Not in the bins: 4 × NaN, 1 × Infinity."


def test_an_image_has_its_pixels(tmp_path: Path, writer: MediaWriter) -> None:
    (event,) = written(tmp_path, image(writer, 7)).Images("x")
    assert (event.step, event.wall_time, event.width, event.height) == (7, 7.0, 2, 2)
    assert Image.open(io.BytesIO(event.encoded_image_string)).tobytes() == PIXELS


def test_a_caption_is_a_text_in_the_same_event(tmp_path: Path, writer: MediaWriter) -> None:
    found = written(tmp_path, image(writer, 7, caption="a *seven*"))
    assert shown(found, "x/caption") == "a *seven*"
    assert len(events(tmp_path)) == 1


def test_boxes_are_drawn_onto_the_image_and_told_once(
    tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = writer.save("image", "x", 0, ".png", png(bytes(12)))
    boxes = [Box(left=0, top=0, right=1, bottom=1)]
    records = [image(writer, step, boxes=boxes, annotated=drawn) for step in range(2)]
    first, _ = written(tmp_path, *records).Images("x")
    assert Image.open(io.BytesIO(first.encoded_image_string)).tobytes() == bytes(12)
    assert caplog.text.count("drawn onto it") == 1


def test_a_tables_first_rows_are_shown_as_they_are(tmp_path: Path, writer: MediaWriter) -> None:
    cells: list[list[Cell]] = [["a|b\n<i>*c*", 1, 0.1, True, None, float("nan")]]
    more: list[list[Cell]] = [["z", 2, 0.2, False, None, 1.0]] * 11
    record = table(writer, [*cells, *more], list("abcdef"))
    found = shown(written(tmp_path, record), "x")
    html = plugin_util.markdown_to_safe_html(found)
    assert html.count("<tr>") == 11
    assert "<td>a|b &lt;i&gt;*c*</td>" in html.replace("&#124;", "|")
    assert "<td>1</td>" in html
    assert "<td>0.1</td>" in html
    assert "<td>true</td>" in html
    assert "<td>nan</td>" in html


def test_a_table_says_how_many_rows_more_there_are_and_where(
    tmp_path: Path, writer: MediaWriter
) -> None:
    record = table(writer, [[n] for n in range(12)], ["a"])
    html = plugin_util.markdown_to_safe_html(shown(written(tmp_path, record), "x"))
    assert f"2 more rows in {tmp_path / record.file.path}" in html


def test_a_picture_in_a_table_is_its_path(tmp_path: Path, writer: MediaWriter) -> None:
    file = writer.save("table", "x", 0, ".png", png())
    record = table(writer, [[Picture(file, 2, 2, 3)]], ["a"])
    html = plugin_util.markdown_to_safe_html(shown(written(tmp_path, record), "x"))
    assert f"<td>{tmp_path / file.path}</td>" in html


def test_a_text_is_the_same_text(tmp_path: Path, writer: MediaWriter) -> None:
    content = "# Über\n\n| a | 日本 |\n"
    assert shown(written(tmp_path, text(writer, 0, content)), "x") == content


def test_a_wav_has_its_samples(tmp_path: Path, writer: MediaWriter) -> None:
    frames = bytes(range(40))
    found = written(tmp_path, audio(writer, 2, frames, caption="beep"))
    (event,) = found.Audio("x")
    assert (event.step, event.content_type, event.sample_rate) == (2, "audio/wav", 8000)
    assert event.length_frames == 10
    with wave.open(io.BytesIO(event.encoded_audio_string)) as heard:
        assert heard.readframes(10) == frames
    assert shown(found, "x/caption") == "beep"


def test_audio_of_another_format_is_a_path(
    tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    file = writer.save("audio", "x", 0, ".mp3", b"ID3")
    about: dict[str, Any] = {"format": "mp3", "sample_rate": 0, "channels": 0, "frames": 0}
    found = written(tmp_path, AudioRecord(**at(0), **about, file=file))
    html = plugin_util.markdown_to_safe_html(shown(found, "x"))
    assert str(tmp_path / file.path) in html
    assert "its path as text" in caplog.text


def test_a_gif_is_shown_moving(tmp_path: Path, writer: MediaWriter) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    ref = writer.save("video", "x", 0, ".gif", file.getvalue())
    (event,) = written(tmp_path, film(ref, "gif")).Images("x")
    assert event.encoded_image_string == file.getvalue()
    assert getattr(Image.open(io.BytesIO(event.encoded_image_string)), "n_frames") == 2  # noqa: B009


def test_a_video_of_another_format_is_a_path(tmp_path: Path, writer: MediaWriter) -> None:
    ref = writer.save("video", "x", 0, ".mp4", b"ftyp")
    html = plugin_util.markdown_to_safe_html(shown(written(tmp_path, film(ref, "mp4")), "x"))
    assert str(tmp_path / ref.path) in html


def test_a_chart_is_its_picture(
    tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = chart(writer, [[1, 2]])
    (event,) = written(tmp_path, record).Images("x")
    assert event.encoded_image_string == png()
    assert "a picture of it" in caplog.text


def test_a_file_is_its_path_even_if_it_was_left_where_it_was(tmp_path: Path) -> None:
    ref = FileRef("/elsewhere/model.pt", 3, "0" * 64)
    found = written(tmp_path, FileRecord(**at(0), file=ref, origin="model.pt"))
    assert shown(found, "x") == "/elsewhere/model.pt"


def test_an_image_gets_a_tag_of_its_own_where_a_scalar_has_the_name(
    tmp_path: Path, writer: MediaWriter
) -> None:
    found = written(tmp_path, row(0, x=1.0), image(writer, 0), row(1, x=2.0))
    assert [event.step for event in found.Scalars("x")] == [0, 1]
    assert [event.step for event in found.Images("x (image)")] == [0]


def test_a_scalar_gets_a_tag_of_its_own_where_an_image_has_the_name(
    tmp_path: Path, writer: MediaWriter
) -> None:
    found = written(tmp_path, image(writer, 0), row(0, x=1.0, y=2.0))
    assert [event.step for event in found.Images("x")] == [0]
    assert [event.value for event in found.Scalars("x (scalar)")] == [1.0]
    assert [event.value for event in found.Scalars("y")] == [2.0]


def test_tags_stay_the_same_in_every_lane_and_when_opened_again(
    tmp_path: Path, writer: MediaWriter
) -> None:
    sink = opened(tmp_path)
    sink.write([row(0, x=1.0), image(writer, 0)])
    state = dict(sink.flush())
    sink.close("running")
    sink = opened(tmp_path, state)
    sink.write([image(writer, 0), image(writer, 1), row(0, x=2.0)])
    sink.close("finished")
    assert tags(tmp_path) == [("x", 0), ("x (image)", 0), ("x (image)", 1)]
    assert tags(tmp_path, "late-1") == [("x (image)", 0), ("x", 0)]


def test_a_late_image_goes_to_a_lane_of_its_own(tmp_path: Path, writer: MediaWriter) -> None:
    written(tmp_path, image(writer, 5), image(writer, 3, caption="late"), image(writer, 6))
    assert tags(tmp_path) == [("x", 5), ("x", 6)]
    assert tags(tmp_path, "late-1") == [("x", 3), ("x/caption", 3)]


def test_after_a_rewind_an_image_is_not_late(tmp_path: Path, writer: MediaWriter) -> None:
    back = Rewind(step=2, epoch=0, time=0)
    written(tmp_path, image(writer, 5), back, image(writer, 3))
    assert tags(tmp_path) == [("x", 5), ("x", 3)]


def test_written_again_from_an_old_state_nothing_is_doubled(
    tmp_path: Path, writer: MediaWriter
) -> None:
    records: list[Any] = [row(0, x=1.0)]
    records += [image(writer, 0), image(writer, 4, caption="c"), text(writer, 4, "t", "x/caption")]
    records += [image(writer, 2), Rewind(step=3, epoch=0, time=0), image(writer, 4), row(4, x=2.0)]
    expected: list[Any] = []
    for lost in range(len(records) - 1):
        place = tmp_path / str(lost)
        sink = opened(tmp_path, location=place)
        sink.write(records[:2])
        state = dict(sink.flush())
        sink.write(records[2 : 2 + lost])
        sink.close("running")
        again = opened(tmp_path, state, place)
        for record in records[2:]:
            again.write([record])
        again.close("finished")
        found = [tags(tmp_path, lane, place / "r") for lane in ("", "late-1")]
        expected = expected or found
        assert found == expected, lost


def test_progress_saved_while_records_come_again_counts_what_has_come(
    tmp_path: Path, writer: MediaWriter
) -> None:
    records = [image(writer, step) for step in range(4)]
    sink = opened(tmp_path)
    state = dict(sink.flush())
    sink.write(records)
    sink.close("running")
    sink = opened(tmp_path, state)
    sink.write(records[:2])
    state = dict(sink.flush())
    sink.close("running")
    sink = opened(tmp_path, state)
    sink.write(records[2:])
    sink.close("finished")
    assert tags(tmp_path) == [("x", step) for step in range(4)]
    assert tags(tmp_path, "late-1") == []


@pytest.mark.parametrize("content", [None, b"changed"])
def test_a_file_that_is_not_what_was_logged_leaves_nothing_written(
    tmp_path: Path, writer: MediaWriter, content: bytes | None
) -> None:
    good, bad = image(writer, 0), image(writer, 1)
    (tmp_path / bad.file.path).unlink()
    if content is not None:
        (tmp_path / bad.file.path).write_bytes(content)
    sink = opened(tmp_path)
    with pytest.raises(MediaError, match=r"missing|changed"):
        sink.write([good, row(0, y=1.0), bad])
    assert tags(tmp_path) == []
    sink.write([good, row(0, y=1.0)])
    sink.close("finished")
    assert tags(tmp_path) == [("x", 0), ("y", 0)]


def test_what_is_written_already_does_not_need_its_file_again(
    tmp_path: Path, writer: MediaWriter
) -> None:
    records = [image(writer, step) for step in range(3)]
    sink = opened(tmp_path)
    state = dict(sink.flush())
    sink.write(records)
    sink.close("running")
    (tmp_path / records[1].file.path).unlink()
    sink = opened(tmp_path, state)
    sink.write(records)
    sink.close("finished")
    assert tags(tmp_path) == [("x", 0), ("x", 1), ("x", 2)]


def test_many_bytes_are_written_in_pieces_and_only_once(
    tmp_path: Path, writer: MediaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricbus.sinks.tensorboard.sink._PIECE", 100)
    records = [image(writer, step) for step in range(4)]
    sink = opened(tmp_path)
    broken = msgspec.structs.replace(records[3], file=text(writer, 9, "no", "y").file)
    check = sink._media.check
    monkeypatch.setattr(sink._media, "check", lambda _: (tmp_path / broken.file.path).unlink())
    with pytest.raises(MediaError):
        sink.write([*records[:3], broken])  # the file goes while they are written
    assert tags(tmp_path) == [("x", step) for step in range(3)]
    monkeypatch.setattr(sink._media, "check", check)
    sink.write(records[:2])
    sink.write(records[2:])
    sink.close("finished")
    assert tags(tmp_path) == [("x", step) for step in range(4)]
    assert tags(tmp_path, "late-1") == []


def test_the_page_itself_shows_and_plays_them(
    tmp_path: Path, writer: MediaWriter, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    sink = opened(tmp_path, location=tmp_path / "logs")
    sink.write([image(writer, 0), text(writer, 0, "*hi*", "t"), HISTOGRAM])
    sink.write([msgspec.structs.replace(audio(writer, 0, bytes(40)), name="a")])
    sink.flush()
    sink.close("finished")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "logs")]
    log = tmp_path / "tensorboard.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", "0", "--load_fast", "true", "--bind_all"],
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: re.search(r"http://\S+?:(\d+)/", log.read_text()) is not None)
        found = re.search(r"http://\S+?:(\d+)/", log.read_text())
        assert found is not None
        base = f"http://127.0.0.1:{found[1]}/data/plugin/"

        def get(path: str) -> Any:
            with urllib.request.urlopen(base + path, timeout=30) as answer:
                return answer.read()

        wait_for(lambda: bool(json.loads(get("text/tags"))))
        (shown,) = json.loads(get("images/images?run=r&tag=x&sample=0"))
        assert get(f"images/individualImage?{shown['query']}") == png()
        (told,) = json.loads(get("text/text?run=r&tag=t"))
        assert told["text"] == "<p><em>hi</em></p>"
        (heard,) = json.loads(get("audio/audio?run=r&tag=a&sample=0"))
        assert heard["contentType"] == "audio/wav"
        tag = quote("x (histogram)")
        ((_, step, bins),) = json.loads(get(f"histograms/histograms?run=r&tag={tag}"))
        assert step == HISTOGRAM.step
        assert [count for _, _, count in bins] == [0, *HISTOGRAM.counts]
    finally:
        process.terminate()
        process.wait(30)

"""Tests of media in the TensorBoard sink, read back with TensorBoard's own readers."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import urllib.request
import warnings
import wave
from collections.abc import Callable, Sequence
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
    ImageCell,
)
from metricbus._common.records import Rewind
from metricbus._journal.media_files import MediaWriter
from metricbus.errors import MediaError
from metricbus.sinks.tensorboard.sink import TensorBoardSink
from tests.helpers.limits import HANG_SECS
from tests.helpers.media_records import (
    HISTOGRAM,
    PIXELS,
    audio,
    chart,
    image,
    log_fields,
    png,
    row,
    table,
    text,
    video,
)

with warnings.catch_warnings():  # raised by the bundled HTML cleaner
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard import plugin_util

RUN = Run(id="r", name="r", host="h", pid=1, started=1_700_000_000 * 10**9)


@pytest.fixture
def writer(tmp_path: Path) -> MediaWriter:
    return MediaWriter(tmp_path, "0-1")


def open_sink(
    folder: Path, state: dict[str, Any] | None = None, location: Path | str = ""
) -> TensorBoardSink:
    sink = TensorBoardSink(str(location))
    sink.open(RUN, folder, state or {})
    return sink


def write_all(folder: Path, *records: Any) -> EventAccumulator:
    deliver(folder, records)
    return read(folder)


def deliver(
    folder: Path,
    saved: Sequence[Any],
    unsaved: Sequence[Any] = (),
    state: dict[str, Any] | None = None,
    location: Path | str = "",
) -> dict[str, Any]:
    """Deliver records from one process, which saves its state after `saved`, and return it."""
    sink = open_sink(folder, state, location)
    sink.write(saved)
    state = dict(sink.flush())
    sink.write(unsaved)
    sink.close("finished")
    return state


def read(folder: Path, lane: str = "") -> EventAccumulator:
    reader = EventAccumulator(str(folder / "tensorboard" / lane), size_guidance={"images": 0})
    reader.Reload()
    return reader


def events(folder: Path, lane: str = "", output: Path | None = None) -> list[Event]:
    return [
        event
        for file in sorted(((output or folder / "tensorboard") / lane).glob("*tfevents*"))
        for event in map(Event.FromString, RawEventFileLoader(str(file)).Load())
        if event.HasField("summary")
    ]


def tags(folder: Path, lane: str = "", output: Path | None = None) -> list[tuple[str, int]]:
    return [
        (value.tag, event.step)
        for event in events(folder, lane, output)
        for value in event.summary.value
    ]


def text_of(reader: EventAccumulator, tag: str) -> str:
    (event,) = reader.Tensors(tag)
    return str(tensor_util.make_ndarray(event.tensor_proto).item().decode())


def test_histogram_event_has_exact_counts_and_edges(tmp_path: Path) -> None:
    write_all(tmp_path, HISTOGRAM)
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


def test_histogram_reads_back_as_a_histogram(tmp_path: Path) -> None:
    record = HistogramRecord(
        **log_fields(3), counts=[1, 2], edges=[0.0, 1.0, 2.0], count=3, minimum=0.0, maximum=2.0
    )
    (event,) = write_all(tmp_path, record).Histograms("x")
    assert event.step == 3
    assert event.histogram_value.num == 3


def test_empty_histogram_becomes_an_event_without_bins(tmp_path: Path) -> None:
    write_all(tmp_path, HistogramRecord(**log_fields(0), counts=[], edges=[], count=0, nan=4))
    (event,) = events(tmp_path)
    assert list(event.summary.value[0].histo.bucket) == []


def test_nonfinite_counts_become_a_text(tmp_path: Path) -> None:
    record = HistogramRecord(
        **log_fields(0), counts=[1], edges=[0.0, 1.0], count=1, nan=4, infinite=1
    )
    reader = write_all(tmp_path, record)
    assert text_of(reader, "x/caption") == "Not in the bins: 4 × NaN, 1 × Infinity."


def test_image_event_has_its_pixels(tmp_path: Path, writer: MediaWriter) -> None:
    (event,) = write_all(tmp_path, image(writer, 7)).Images("x")
    assert (event.step, event.wall_time, event.width, event.height) == (7, 7.0, 2, 2)
    assert Image.open(io.BytesIO(event.encoded_image_string)).tobytes() == PIXELS


def test_caption_is_a_text_in_the_same_event(tmp_path: Path, writer: MediaWriter) -> None:
    reader = write_all(tmp_path, image(writer, 7, caption="a *seven*"))
    assert text_of(reader, "x/caption") == "a *seven*"
    assert len(events(tmp_path)) == 1


def test_annotated_image_is_written_with_one_warning(
    tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = writer.save("image", "x", 0, ".png", png(bytes(12)))
    boxes = [Box(left=0, top=0, right=1, bottom=1)]
    records = [image(writer, step, boxes=boxes, annotated=drawn) for step in range(2)]
    first, _ = write_all(tmp_path, *records).Images("x")
    assert Image.open(io.BytesIO(first.encoded_image_string)).tobytes() == bytes(12)
    assert caplog.text.count("drawn onto it") == 1


def test_first_rows_of_a_table_are_escaped(tmp_path: Path, writer: MediaWriter) -> None:
    cells: list[list[Cell]] = [["a|b\n<i>*c*", 1, 0.1, True, None, float("nan")]]
    more: list[list[Cell]] = [["z", 2, 0.2, False, None, 1.0]] * 11
    record = table(writer, [*cells, *more], list("abcdef"))
    html = plugin_util.markdown_to_safe_html(text_of(write_all(tmp_path, record), "x"))
    assert html.count("<tr>") == 11
    assert "<td>a|b &lt;i&gt;*c*</td>" in html.replace("&#124;", "|")
    assert "<td>1</td>" in html
    assert "<td>0.1</td>" in html
    assert "<td>true</td>" in html
    assert "<td>nan</td>" in html


def test_table_text_has_the_number_of_other_rows_and_their_file(
    tmp_path: Path, writer: MediaWriter
) -> None:
    record = table(writer, [[n] for n in range(12)], ["a"])
    html = plugin_util.markdown_to_safe_html(text_of(write_all(tmp_path, record), "x"))
    assert f"2 more rows in {tmp_path / record.file.path}" in html


def test_image_in_a_table_becomes_its_path(tmp_path: Path, writer: MediaWriter) -> None:
    file = writer.save("table", "x", 0, ".png", png())
    record = table(writer, [[ImageCell(file, 2, 2, 3)]], ["a"])
    html = plugin_util.markdown_to_safe_html(text_of(write_all(tmp_path, record), "x"))
    assert f"<td>{tmp_path / file.path}</td>" in html


def test_text_is_unchanged(tmp_path: Path, writer: MediaWriter) -> None:
    content = "# Über\n\n| a | 日本 |\n"
    assert text_of(write_all(tmp_path, text(writer, 0, content)), "x") == content


def test_wav_event_has_its_samples(tmp_path: Path, writer: MediaWriter) -> None:
    frames = bytes(range(40))
    reader = write_all(tmp_path, audio(writer, 2, frames, caption="beep"))
    (event,) = reader.Audio("x")
    assert (event.step, event.content_type, event.sample_rate) == (2, "audio/wav", 8000)
    assert event.length_frames == 10
    with wave.open(io.BytesIO(event.encoded_audio_string)) as file:
        assert file.readframes(10) == frames
    assert text_of(reader, "x/caption") == "beep"


def test_audio_in_another_format_becomes_its_path(
    tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    file = writer.save("audio", "x", 0, ".mp3", b"ID3")
    fields: dict[str, Any] = {"format": "mp3", "sample_rate": 0, "channels": 0, "frames": 0}
    reader = write_all(tmp_path, AudioRecord(**log_fields(0), **fields, file=file))
    html = plugin_util.markdown_to_safe_html(text_of(reader, "x"))
    assert str(tmp_path / file.path) in html
    assert "the path as text" in caplog.text


def test_gif_stays_animated(tmp_path: Path, writer: MediaWriter) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    ref = writer.save("video", "x", 0, ".gif", file.getvalue())
    (event,) = write_all(tmp_path, video(ref, "gif")).Images("x")
    assert event.encoded_image_string == file.getvalue()
    assert getattr(Image.open(io.BytesIO(event.encoded_image_string)), "n_frames") == 2  # noqa: B009


def test_video_in_another_format_becomes_its_path(tmp_path: Path, writer: MediaWriter) -> None:
    ref = writer.save("video", "x", 0, ".mp4", b"ftyp")
    html = plugin_util.markdown_to_safe_html(text_of(write_all(tmp_path, video(ref, "mp4")), "x"))
    assert str(tmp_path / ref.path) in html


def test_chart_becomes_an_image(
    tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = chart(writer, [[1, 2]])
    (event,) = write_all(tmp_path, record).Images("x")
    assert event.encoded_image_string == png()
    assert "an image of the chart" in caplog.text


def test_file_without_a_copy_becomes_its_path(tmp_path: Path) -> None:
    ref = FileRef("/elsewhere/model.pt", 3, "0" * 64)
    reader = write_all(tmp_path, FileRecord(**log_fields(0), file=ref, origin="model.pt"))
    assert text_of(reader, "x") == "/elsewhere/model.pt"


def test_image_gets_another_tag_if_a_scalar_has_the_name(
    tmp_path: Path, writer: MediaWriter
) -> None:
    reader = write_all(tmp_path, row(0, x=1.0), image(writer, 0), row(1, x=2.0))
    assert [event.step for event in reader.Scalars("x")] == [0, 1]
    assert [event.step for event in reader.Images("x (image)")] == [0]


def test_scalar_gets_another_tag_if_an_image_has_the_name(
    tmp_path: Path, writer: MediaWriter
) -> None:
    reader = write_all(tmp_path, image(writer, 0), row(0, x=1.0, y=2.0))
    assert [event.step for event in reader.Images("x")] == [0]
    assert [event.value for event in reader.Scalars("x (scalar)")] == [1.0]
    assert [event.value for event in reader.Scalars("y")] == [2.0]


def test_tags_are_the_same_in_all_lanes_and_after_reopening(
    tmp_path: Path, writer: MediaWriter
) -> None:
    state = deliver(tmp_path, [row(0, x=1.0), image(writer, 0)])
    deliver(tmp_path, [image(writer, 0), image(writer, 1), row(0, x=2.0)], state=state)
    assert tags(tmp_path) == [("x", 0), ("x (image)", 0), ("x (image)", 1)]
    assert tags(tmp_path, "late-1") == [("x (image)", 0), ("x", 0)]


def test_out_of_order_image_goes_to_another_lane(tmp_path: Path, writer: MediaWriter) -> None:
    write_all(tmp_path, image(writer, 5), image(writer, 3, caption="late"), image(writer, 6))
    assert tags(tmp_path) == [("x", 5), ("x", 6)]
    assert tags(tmp_path, "late-1") == [("x", 3), ("x/caption", 3)]


def test_image_after_a_rewind_stays_in_the_first_lane(tmp_path: Path, writer: MediaWriter) -> None:
    back = Rewind(step=2, epoch=0, time=0)
    write_all(tmp_path, image(writer, 5), back, image(writer, 3))
    assert tags(tmp_path) == [("x", 5), ("x", 3)]


def test_redelivery_from_an_old_state_duplicates_nothing(
    tmp_path: Path, writer: MediaWriter
) -> None:
    records: list[Any] = [row(0, x=1.0)]
    records += [image(writer, 0), image(writer, 4, caption="c"), text(writer, 4, "t", "x/caption")]
    records += [image(writer, 2), Rewind(step=3, epoch=0, time=0), image(writer, 4), row(4, x=2.0)]
    expected: list[Any] = []
    for unsaved in range(len(records) - 1):
        output = tmp_path / str(unsaved)
        state = deliver(tmp_path, records[:2], records[2 : 2 + unsaved], location=output)
        reopened = open_sink(tmp_path, state, output)
        for record in records[2:]:
            reopened.write([record])
        reopened.close("finished")
        found = [tags(tmp_path, lane, output / "r") for lane in ("", "late-1")]
        expected = expected or found
        assert found == expected, unsaved


def test_state_saved_during_redelivery_covers_only_redelivered_records(
    tmp_path: Path, writer: MediaWriter
) -> None:
    records = [image(writer, step) for step in range(4)]
    state = deliver(tmp_path, [], records)
    state = deliver(tmp_path, records[:2], state=state)
    deliver(tmp_path, records[2:], state=state)
    assert tags(tmp_path) == [("x", step) for step in range(4)]
    assert tags(tmp_path, "late-1") == []


@pytest.mark.parametrize("content", [None, b"changed"])
def test_missing_or_changed_file_prevents_the_whole_write(
    tmp_path: Path, writer: MediaWriter, content: bytes | None
) -> None:
    good, bad = image(writer, 0), image(writer, 1)
    (tmp_path / bad.file.path).unlink()
    if content is not None:
        (tmp_path / bad.file.path).write_bytes(content)
    sink = open_sink(tmp_path)
    with pytest.raises(MediaError, match=r"missing|changed"):
        sink.write([good, row(0, y=1.0), bad])
    assert tags(tmp_path) == []
    sink.write([good, row(0, y=1.0)])
    sink.close("finished")
    assert tags(tmp_path) == [("x", 0), ("y", 0)]


def test_redelivery_does_not_need_the_files_of_written_media(
    tmp_path: Path, writer: MediaWriter
) -> None:
    records = [image(writer, step) for step in range(3)]
    state = deliver(tmp_path, [], records)
    (tmp_path / records[1].file.path).unlink()
    deliver(tmp_path, records, state=state)
    assert tags(tmp_path) == [("x", 0), ("x", 1), ("x", 2)]


def test_large_batches_are_written_in_several_writes_without_duplicates(
    tmp_path: Path, writer: MediaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricbus.sinks.tensorboard.sink._WRITE_BYTES", 100)
    records = [image(writer, step) for step in range(4)]
    sink = open_sink(tmp_path)
    broken = msgspec.structs.replace(records[3], file=text(writer, 9, "no", "y").file)
    check = sink._media_events.check
    monkeypatch.setattr(
        sink._media_events, "check", lambda _: (tmp_path / broken.file.path).unlink()
    )
    with pytest.raises(MediaError):
        sink.write([*records[:3], broken])  # its file is deleted during the write
    assert tags(tmp_path) == [("x", step) for step in range(3)]
    monkeypatch.setattr(sink._media_events, "check", check)
    sink.write(records[:2])
    sink.write(records[2:])
    sink.close("finished")
    assert tags(tmp_path) == [("x", step) for step in range(4)]
    assert tags(tmp_path, "late-1") == []


def test_tensorboard_server_returns_the_media(
    tmp_path: Path, writer: MediaWriter, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    sink = open_sink(tmp_path, location=tmp_path / "logs")
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
        address = re.search(r"http://\S+?:(\d+)/", log.read_text())
        assert address is not None
        base = f"http://127.0.0.1:{address[1]}/data/plugin/"

        def get(path: str) -> Any:
            with urllib.request.urlopen(base + path, timeout=30) as answer:
                return answer.read()

        wait_for(lambda: bool(json.loads(get("text/tags"))))
        (text_of,) = json.loads(get("images/images?run=r&tag=x&sample=0"))
        assert get(f"images/individualImage?{text_of['query']}") == png()
        (shown_text,) = json.loads(get("text/text?run=r&tag=t"))
        assert shown_text["text"] == "<p><em>hi</em></p>"
        (clip,) = json.loads(get("audio/audio?run=r&tag=a&sample=0"))
        assert clip["contentType"] == "audio/wav"
        tag = quote("x (histogram)")
        ((_, step, bins),) = json.loads(get(f"histograms/histograms?run=r&tag={tag}"))
        assert step == HISTOGRAM.step
        assert [count for _, _, count in bins] == [0, *HISTOGRAM.counts]
    finally:
        process.terminate()
        process.wait(HANG_SECS)

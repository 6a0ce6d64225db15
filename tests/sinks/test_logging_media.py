"""Media in the logging sink."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from metricbus import Run
from metricbus._common.media_records import FileRecord, FileRef, HistogramRecord
from metricbus._journal.media_files import MediaWriter
from metricbus.errors import MediaError
from metricbus.sinks.logging.sink import LoggingSink
from tests.helpers.media_records import audio, chart, image, log_fields, row, table, text, video

RUN = Run(id="r", name="r", host="h", pid=1, started=1_700_000_000 * 10**9)


@pytest.fixture
def writer(tmp_path: Path) -> MediaWriter:
    return MediaWriter(tmp_path, "0-1")


@pytest.fixture
def sink(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> LoggingSink:
    caplog.set_level(logging.INFO, "metricbus")
    logging_sink = LoggingSink()
    logging_sink.open(RUN, tmp_path, {})
    caplog.clear()
    return logging_sink


def log_and_read(sink: LoggingSink, caplog: pytest.LogCaptureFixture, record: Any) -> str:
    sink.write([record])
    return caplog.messages[-1]


def test_a_histogram_line_has_totals_and_quartiles(
    sink: LoggingSink, caplog: pytest.LogCaptureFixture
) -> None:
    record = HistogramRecord(
        **log_fields(3),
        counts=[2, 2],
        edges=[0.0, 1.0, 2.0],
        count=4,
        minimum=0.0,
        maximum=2.0,
        mean=1.0,
        nan=3,
    )
    assert log_and_read(sink, caplog, record) == (
        "step 3 epoch 0 | x: histogram of 4 values min=0 mean=1 max=2 quartiles=0.5,1,1.5 nan=3"
    )


def test_an_empty_histogram_line_has_the_count(
    sink: LoggingSink, caplog: pytest.LogCaptureFixture
) -> None:
    record = HistogramRecord(**log_fields(3), counts=[], edges=[], count=0, minus_infinite=1)
    assert log_and_read(sink, caplog, record).endswith("x: histogram of 0 values -inf=1")


def test_an_image_line_has_size_path_and_caption(
    sink: LoggingSink, tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = image(writer, 3, caption="a seven")
    assert log_and_read(sink, caplog, record) == (
        f'step 3 epoch 0 | x: image 2x2 in {tmp_path / record.file.path} "a seven"'
    )


def test_a_table_line_has_size_and_first_row(
    sink: LoggingSink, tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = table(writer, [["a\nb", 1 / 3, None], ["c", 2.0, True]], ["t", "n", "x y"])
    path = tmp_path / record.file.path
    assert log_and_read(sink, caplog, record) == (
        f"step 0 epoch 0 | x: table 2 rows of 3 columns in {path}, first row: "
        't="a b" n=0.333333 "x y"='
    )


def test_an_empty_table_has_no_first_row(
    sink: LoggingSink, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    assert "first row" not in log_and_read(sink, caplog, table(writer, [], ["t"]))


def test_a_text_line_has_its_beginning(
    sink: LoggingSink, tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = text(writer, 0, "one two")
    path = tmp_path / record.file.path
    assert log_and_read(sink, caplog, record).endswith(
        f'x: text of 7 characters in {path}: "one two"'
    )


def test_an_audio_line_has_duration_and_path(
    sink: LoggingSink, tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = audio(writer, 0, bytes(16000))
    path = tmp_path / record.file.path
    assert log_and_read(sink, caplog, record).endswith(f"x: audio of 0.5 s (wav) in {path}")


def test_a_video_line_has_duration_and_path(
    sink: LoggingSink, tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    ref = writer.save("video", "x", 0, ".gif", b"GIF89a")
    line = log_and_read(sink, caplog, video(ref, "gif"))
    assert line.endswith(f"x: video of 0.5 s (gif) in {tmp_path / ref.path}")


def test_a_chart_line_has_the_path_of_its_image_and_its_title(
    sink: LoggingSink, tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = chart(writer, [[1, 2]])
    path = tmp_path / record.picture.path
    assert log_and_read(sink, caplog, record).endswith(f"x: chart of 1 rows in {path} t")


def test_a_file_line_has_size_and_path(sink: LoggingSink, caplog: pytest.LogCaptureFixture) -> None:
    ref = FileRef("/else where/model.pt", 3000, "0" * 64)
    line = log_and_read(sink, caplog, FileRecord(**log_fields(0), file=ref, origin="model.pt"))
    assert line.endswith('x: file of 3,000 bytes in "/else where/model.pt"')


def test_no_medium_can_inject_a_line(
    sink: LoggingSink, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    records = [
        image(writer, 0, name="a\nb", caption="c\r\x1b[2Jd"),
        text(writer, 0, "e\x85f"),
        table(writer, [["g\u2028h"]], ["i\nj"]),
    ]
    sink.write(records)
    assert all(message.isprintable() for message in caplog.messages)
    assert len(caplog.messages) == len(records)


def test_the_log_record_carries_the_medium_record(
    sink: LoggingSink, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    record = image(writer, 3)
    sink.write([record, row(4, y=1.0)])
    medium, scalars = (vars(entry) for entry in caplog.records)
    assert medium["medium"] is record
    assert "metrics" not in medium
    assert "medium" not in scalars
    assert (medium["step"], medium["created"]) == (3, 3.0)


def test_logs_nothing_if_the_file_of_a_table_is_missing(
    sink: LoggingSink, tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    bad = table(writer, [[1]], ["a"])
    (tmp_path / bad.file.path).unlink()
    with pytest.raises(MediaError, match="missing"):
        sink.write([row(0, y=1.0), bad])
    assert caplog.messages == []

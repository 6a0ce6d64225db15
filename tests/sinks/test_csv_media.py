"""Media in the CSV sink, read back with the csv module."""

from __future__ import annotations

import csv
import errno
import io
import os
import wave
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from metricbus import Run
from metricbus._common.files import AppendFile
from metricbus._common.media_records import (
    Box,
    Cell,
    FileRecord,
    FileRef,
    HistogramRecord,
    ImageCell,
)
from metricbus._journal.media_files import MediaWriter, make_file_ref
from metricbus.errors import MediaError, RecordsLostError
from metricbus.sinks.csv.sink import CsvSink
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

RUN = Run(id="r", name="r", host="h", pid=1, started=1_700_000_000 * 10**9)


@pytest.fixture
def writer(tmp_path: Path) -> MediaWriter:
    return MediaWriter(tmp_path, "0-1")


def open_sink(folder: Path, state: dict[str, Any] | None = None, location: str = "") -> CsvSink:
    sink = CsvSink(location)
    sink.open(RUN, folder, state or {})
    return sink


def write_and_read(folder: Path, *records: Any, location: str = "") -> list[dict[str, str]]:
    sink = open_sink(folder, location=location)
    sink.write(records)
    sink.flush()
    sink.close("finished")
    return read_rows((Path(location) / "r" if location else folder / "csv") / "metrics.csv")


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_csv_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the append-only files by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.csv"))
    }


def test_an_image_line_has_the_path_of_its_file(tmp_path: Path, writer: MediaWriter) -> None:
    (line,) = write_and_read(tmp_path, image(writer, 7))
    assert (line["step"], line["epoch"], line["time"]) == ("7", "0", "7.000000000")
    assert (line["name"], line["kind"]) == ("x", "image")
    assert line["value"].startswith("../media/")
    assert Image.open(tmp_path / "csv" / line["value"]).tobytes() == PIXELS


def test_a_caption_has_its_own_line(tmp_path: Path, writer: MediaWriter) -> None:
    _, line = write_and_read(tmp_path, image(writer, 7, caption="=a, seven"))
    assert (line["name"], line["value"], line["kind"]) == ("x", "'=a, seven", "caption")


def test_an_image_with_boxes_refers_to_the_annotated_image(
    tmp_path: Path, writer: MediaWriter, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = writer.save("image", "x", 0, ".png", png(bytes(12)))
    boxes = [Box(left=0, top=0, right=1, bottom=1)]
    (line,) = write_and_read(tmp_path, image(writer, 0, boxes=boxes, annotated=drawn))
    assert Image.open(tmp_path / "csv" / line["value"]).tobytes() == bytes(12)
    assert "logging images with these drawn onto them instead" in caplog.text


def test_a_text_line_has_the_path_of_its_file(tmp_path: Path, writer: MediaWriter) -> None:
    (line,) = write_and_read(tmp_path, text(writer, 0, "# Über\n"))
    assert line["kind"] == "text"
    assert (tmp_path / "csv" / line["value"]).read_text(encoding="utf-8") == "# Über\n"


def test_an_audio_line_has_the_path_of_its_file(tmp_path: Path, writer: MediaWriter) -> None:
    frames = bytes(range(40))
    (line,) = write_and_read(tmp_path, audio(writer, 0, frames))
    with wave.open(str(tmp_path / "csv" / line["value"])) as wav:
        assert wav.readframes(10) == frames
    assert line["kind"] == "audio"


def test_a_video_line_has_the_path_of_its_file(tmp_path: Path, writer: MediaWriter) -> None:
    ref = writer.save("video", "x", 0, ".mp4", b"ftyp")
    (line,) = write_and_read(tmp_path, video(ref, "mp4"))
    assert line["kind"] == "video"
    assert (tmp_path / "csv" / line["value"]).read_bytes() == b"ftyp"


def test_a_file_that_was_not_copied_keeps_its_path(tmp_path: Path) -> None:
    ref = FileRef("/elsewhere/model.pt", 3, "0" * 64)
    (line,) = write_and_read(tmp_path, FileRecord(**log_fields(0), file=ref, origin="model.pt"))
    assert (line["value"], line["kind"]) == ("/elsewhere/model.pt", "file")


def test_a_chart_has_an_image_and_data(tmp_path: Path, writer: MediaWriter) -> None:
    picture, data = write_and_read(tmp_path, chart(writer, [[1, 0.1], [2, float("nan")]]))
    assert (picture["kind"], data["kind"]) == ("chart", "chart_data")
    assert (tmp_path / "csv" / picture["value"]).read_bytes() == png()
    assert data["value"].startswith("charts/")
    assert read_rows(tmp_path / "csv" / data["value"]) == [
        {"a": "1", "b": "0.1"},
        {"a": "2", "b": "nan"},
    ]


def read_histograms(path: Path) -> list[HistogramRecord]:
    found: list[HistogramRecord] = []
    for line in read_rows(path):
        if line["count"]:
            numbers: dict[str, Any] = {
                field: float(line[key]) if line[key] else None for field, key in KEYS.items()
            }
            record = HistogramRecord(
                **log_fields(int(line["step"]), line["name"]),
                counts=[],
                edges=[],
                count=int(line["count"]),
                nan=int(line["nan"]),
                infinite=int(line["inf"]),
                minus_infinite=int(line["minus_inf"]),
                **numbers,
            )
            found.append(record)
        else:
            found[-1].counts.append(int(line["bin_count"]))
            edges = found[-1].edges
            edges += [float(line["high"])] if edges else [float(line["low"]), float(line["high"])]
    return found


KEYS = {
    "minimum": "min",
    "maximum": "max",
    "mean": "mean",
    "std": "std",
    "sum": "sum",
    "sum_squares": "sum_squares",
}


def test_histograms_read_back_exactly(tmp_path: Path) -> None:
    empty = HistogramRecord(**log_fields(4), counts=[], edges=[], count=0, nan=4, minus_infinite=1)
    (line, _) = write_and_read(tmp_path, HISTOGRAM, empty)
    assert (line["value"], line["kind"]) == ("histograms.csv", "histogram")
    assert read_histograms(tmp_path / "csv" / "histograms.csv") == [HISTOGRAM, empty]


def test_a_table_has_its_own_csv_file(tmp_path: Path, writer: MediaWriter) -> None:
    file = writer.save("table", "x", 0, ".png", png())
    rows: list[list[Cell]] = [
        ["=1+1", -1, 0.1, True],
        [None, 2**60, float("inf"), ImageCell(file, 2, 2, 3)],
    ]
    (line,) = write_and_read(tmp_path, table(writer, rows, ["a", "-b", "c", "d"]))
    assert line["kind"] == "table"
    with open(tmp_path / "csv" / line["value"], newline="", encoding="utf-8") as found:
        assert list(csv.reader(found)) == [
            ["a", "'-b", "c", "d"],
            ["'=1+1", "-1", "0.1", "true"],
            ["", str(2**60), "inf", f"../{file.path}"],
        ]


def test_parts_of_a_table_are_appended_and_listed(tmp_path: Path, writer: MediaWriter) -> None:
    parts = [table(writer, [[0], [1]], ["a"]), table(writer, [[2]], ["a"], first_row=2)]
    first, second = write_and_read(tmp_path, *parts, table(writer, [[9]], ["a"], id="u"))[:2]
    assert first["value"] == second["value"]
    assert [line["a"] for line in read_rows(tmp_path / "csv" / first["value"])] == ["0", "1", "2"]
    parts_listed = read_rows(tmp_path / "csv" / "tables.csv")
    assert [(line["first_row"], line["rows"]) for line in parts_listed] == [
        ("0", "2"),
        ("2", "1"),
        ("0", "1"),
    ]


def test_the_id_of_a_table_cannot_escape_its_folder(tmp_path: Path, writer: MediaWriter) -> None:
    (line,) = write_and_read(tmp_path, table(writer, [[0]], ["a"], id="../../../x"))
    path = (tmp_path / "csv" / line["value"]).resolve()
    assert path.parent == tmp_path / "csv" / "tables"


def test_copies_media_to_a_location(tmp_path: Path, writer: MediaWriter) -> None:
    file = writer.save("table", "x", 0, ".png", png())
    records = [image(writer, 0), table(writer, [[ImageCell(file, 2, 2, 3)]], ["a"])]
    lines = write_and_read(tmp_path, *records, location=str(tmp_path / "own"))
    own = tmp_path / "own" / "r"
    assert lines[0]["value"].startswith("media/")
    assert Image.open(own / lines[0]["value"]).tobytes() == PIXELS
    (cells,) = read_rows(own / lines[1]["value"])
    assert (own / cells["a"]).read_bytes() == png()


def test_does_not_overwrite_its_own_files_with_copies(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"forged")
    ref = make_file_ref(tmp_path / "metrics.csv", "metrics.csv")
    with pytest.raises(MediaError, match="media/"):
        write_and_read(tmp_path, video(ref, "mp4"), location=str(tmp_path / "own"))


def all_kinds(writer: MediaWriter) -> list[Any]:
    return [
        row(0, y=1.0),
        table(writer, [[0], [1]], ["a"]),
        HISTOGRAM,
        table(writer, [[2]], ["a"], first_row=2),
        image(writer, 3, caption="c"),
        table(writer, [[3]], ["a"], first_row=3),
        chart(writer, [[1, 2]]),
        msgspec.structs.replace(HISTOGRAM, step=9),
    ]


@pytest.mark.parametrize("saved", range(9))
def test_writing_again_from_an_old_state_repeats_nothing(
    tmp_path: Path, writer: MediaWriter, saved: int
) -> None:
    records = all_kinds(writer)
    write_and_read(tmp_path, *records, location=str(tmp_path / "once"))
    repeated = str(tmp_path / "repeated")
    sink = open_sink(tmp_path, location=repeated)
    sink.write(records[:saved])
    state = dict(sink.flush())
    sink.write(records[saved:])
    sink.close("running")
    sink = open_sink(tmp_path, state, repeated)
    sink.write(records[saved:])
    sink.close("finished")
    assert read_csv_files(tmp_path / "repeated") == read_csv_files(tmp_path / "once")


@pytest.mark.parametrize("change", [None, b"changed"])
def test_writes_nothing_if_a_file_is_missing_or_changed(
    tmp_path: Path, writer: MediaWriter, change: bytes | None
) -> None:
    records = all_kinds(writer)
    bad = image(writer, 9)
    (tmp_path / bad.file.path).unlink()
    if change is not None:
        (tmp_path / bad.file.path).write_bytes(change)
    sink = open_sink(tmp_path)
    sink.write(records[:2])
    before = read_csv_files(tmp_path / "csv")
    with pytest.raises(MediaError, match=r"missing|changed"):
        sink.write([*records[2:6], table(writer, [[9]], ["a"], id="new"), bad])
    assert read_csv_files(tmp_path / "csv") == before
    sink.write(records[2:])
    sink.close("finished")
    write_and_read(tmp_path, *records, location=str(tmp_path / "once"))
    found, once = read_csv_files(tmp_path / "csv"), read_csv_files(tmp_path / "once" / "r")
    assert found["tables.csv"] == once["tables.csv"]
    assert found["histograms.csv"] == once["histograms.csv"]


def test_writes_nothing_on_a_full_disk(
    tmp_path: Path, writer: MediaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = all_kinds(writer)
    sink = open_sink(tmp_path)
    before = read_csv_files(tmp_path / "csv")
    append = AppendFile.append

    def fail(file: AppendFile, piece: bytes) -> None:
        if file.path.name == "metrics.csv":
            raise OSError(errno.ENOSPC, "full")
        append(file, piece)

    with monkeypatch.context() as patch:
        patch.setattr(AppendFile, "append", fail)
        with pytest.raises(OSError, match="full"):
            sink.write(records[:6])
    assert read_csv_files(tmp_path / "csv") == before
    sink.write(records[:6])
    sink.close("finished")
    assert len(read_rows(tmp_path / "csv" / "tables.csv")) == 3


def test_raises_lost_if_a_file_cannot_be_truncated(
    tmp_path: Path, writer: MediaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_sink(tmp_path)
    state = dict(sink.flush())
    good = table(writer, [[0]], ["a"])
    bad = image(writer, 1)
    (tmp_path / bad.file.path).unlink()

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", fail)
        with pytest.raises(RecordsLostError):
            sink.write([good, bad])
    sink = open_sink(tmp_path, state)
    sink.write([good])
    sink.close("finished")
    (line,) = read_rows(tmp_path / "csv" / "metrics.csv")
    assert [cells["a"] for cells in read_rows(tmp_path / "csv" / line["value"])] == ["0"]


def test_keeps_few_files_open_for_many_tables(tmp_path: Path, writer: MediaWriter) -> None:
    sink = open_sink(tmp_path)
    before = len(os.listdir("/dev/fd"))
    for first in range(2):
        for number in range(40):
            sink.write([table(writer, [[first]], ["a"], first_row=first, id=f"t{number}")])
    assert len(os.listdir("/dev/fd")) <= before + 16
    sink.close("finished")
    for path in (tmp_path / "csv" / "tables").iterdir():
        assert [line["a"] for line in read_rows(path)] == ["0", "1"]


def test_the_state_does_not_grow_with_the_number_of_tables(
    tmp_path: Path, writer: MediaWriter
) -> None:
    sink = open_sink(tmp_path)
    sink.write([table(writer, [[0]], ["a"], id=f"t{number}") for number in range(100)])
    assert set(sink.flush()) == {"length", "tables"}
    sink.close("finished")


@pytest.mark.parametrize("others", [0, 40])
def test_raises_lost_if_another_process_has_changed_a_table(
    tmp_path: Path, writer: MediaWriter, others: int
) -> None:
    sink = open_sink(tmp_path)
    sink.write([table(writer, [[0]], ["a"])])
    (path,) = (tmp_path / "csv" / "tables").iterdir()
    sink.write([table(writer, [[0]], ["a"], id=f"t{number}") for number in range(others)])
    with path.open("ab") as file:
        file.write(b"9\r\n")
    with pytest.raises(RecordsLostError):
        sink.write([table(writer, [[1]], ["a"], first_row=1)])
    sink.close("failed")


def test_a_gif_keeps_its_frames(tmp_path: Path, writer: MediaWriter) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    ref = writer.save("video", "x", 0, ".gif", file.getvalue())
    (line,) = write_and_read(tmp_path, video(ref, "gif"))
    assert (tmp_path / "csv" / line["value"]).read_bytes() == file.getvalue()

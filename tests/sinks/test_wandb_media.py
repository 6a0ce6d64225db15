"""Media in W&B, verified by reading W&B's own files."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import textwrap
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metricbus._common.media_records import (
    AudioRecord,
    Box,
    Cell,
    ChartRecord,
    FileRecord,
    FileRef,
    HistogramRecord,
    ImageCell,
    ImageRecord,
    MediumRecord,
    TableRecord,
    TextRecord,
    VideoRecord,
    encode_rows,
)
from metricbus._common.records import Rewind, ScalarRow
from metricbus._journal.media_files import MediaWriter
from metricbus._journal.run import Run
from metricbus.errors import MediaError, RecordsRejectedError
from metricbus.sinks.wandb.names import (
    CHARTS_PREFIX,
    column_name,
    file_column_name,
    max_table_column_length,
    text_class_numbers,
)
from metricbus.sinks.wandb.sink import WandbSink
from metricbus.sinks.wandb.start import WandbOptions
from tests.helpers.limits import HANG_SECS
from tests.helpers.wandb_reader import (
    wandb_artifacts,
    wandb_config,
    wandb_files,
    wandb_path,
    wandb_records,
    wandb_rows,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
CLASSES = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
AT: dict[str, Any] = {"step": 7, "epoch": 2, "time": 1_700_000_000_250_000_000}


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def wav() -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(100, dtype=np.int16).tobytes())
    return content.getvalue()


class RecordFactory:
    """Creates media records and their files in one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = MediaWriter(folder, "s")

    def save(self, name: str, content: bytes, suffix: str) -> FileRef:
        return self.writer.save("made", name, 7, suffix, content)

    def image(self, name: str, **fields: Any) -> ImageRecord:
        file = self.save(name, png(PIXELS), ".png")
        return ImageRecord(name=name, file=file, width=8, height=6, channels=3, **AT, **fields)

    def masked(self, name: str, mask: np.ndarray[Any, Any], **fields: Any) -> ImageRecord:
        return self.image(name, masks={"seen": self.save(name, png(mask), ".png")}, **fields)

    def picture(self) -> ImageCell:
        return ImageCell(self.save("cell", png(PIXELS), ".png"), 8, 6, 3, "a cell")

    def table(self, name: str, rows: list[list[Cell]], part: int = 0, first: int = 0) -> Any:
        file = self.save(name, encode_rows(rows), ".jsonl")
        columns = ["a", "b"]
        return TableRecord(
            name=name,
            table="t1",
            part=part,
            first_row=first,
            rows=len(rows),
            columns=columns,
            file=file,
            **AT,
        )

    def chart(
        self, name: str, kind: str, columns: list[str], rows: list[list[Cell]], ys: list[str]
    ) -> ChartRecord:
        return ChartRecord(
            name=name,
            chart=kind,
            x_column=columns[0],
            y_columns=ys,
            title="Title",
            columns=columns,
            rows=len(rows),
            width=8,
            height=6,
            data=self.save(name, encode_rows(rows), ".jsonl"),
            picture=self.save(name, png(PIXELS), ".png"),
            **AT,
        )

    def text(self, name: str, text: str) -> TextRecord:
        file = self.save(name, text.encode(), ".md")
        return TextRecord(name=name, file=file, length=len(text), start=text[:9], **AT)

    def audio(self, name: str) -> AudioRecord:
        return AudioRecord(
            name=name,
            file=self.save(name, wav(), ".wav"),
            format="wav",
            sample_rate=8000,
            channels=1,
            frames=100,
            caption="a ramp",
            **AT,
        )

    def video(self, name: str, content: bytes, suffix: str) -> VideoRecord:
        return VideoRecord(
            name=name,
            file=self.save(name, content, suffix),
            format=suffix[1:],
            fps=4.0,
            frames=2,
            width=8,
            height=6,
            caption="two frames",
            **AT,
        )

    def histogram(self, name: str, counts: list[int], edges: list[float], **fields: Any) -> Any:
        count = sum(counts)
        return HistogramRecord(name=name, counts=counts, edges=edges, count=count, **AT, **fields)


def open_sink(factory: RecordFactory, rows: int = 0, id: str | None = None) -> WandbSink:
    run = Run(id=id or f"r{time.time_ns()}", name="media", started=1)
    sink = WandbSink(options=WandbOptions(mode="offline"))
    sink.open(run, factory.folder, {"rows": rows} if rows else {})
    return sink


def write_all(factory: RecordFactory, records: list[Any]) -> None:
    sink = open_sink(factory)
    sink.write(records)
    sink.flush()
    sink.close("finished")


def row_of(folder: Path, key: str) -> dict[str, Any]:
    (row,) = (row for row in wandb_rows(folder) if key in row)
    return row


def content_of(folder: Path, key: str) -> bytes:
    return wandb_path(folder, row_of(folder, key)[key]["path"]).read_bytes()


def table_of(folder: Path, key: str) -> Any:
    return json.loads(content_of(folder, key))


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the folder where W&B stages the files of tables."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))


GIF, MP4, AVI = b"GIF89a and so on", b"an mp4", b"an avi"
TEXT = "# Title\n\n*é* 🦆\n" * 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with all kinds of media."""
    folder = tmp_path_factory.mktemp("run")
    factory = RecordFactory(folder)
    checkpoint = folder / "model v1 [best].pt"
    checkpoint.write_bytes(b"weights")
    copied = factory.writer.copy("files", "ckpt", 7, checkpoint)
    boxes = [
        Box(1, 2, 3.5, 4, label=3, score=0.5),
        Box(0, 0, 8, 6, label="dog", caption="good dog"),
        Box(0, 0, 1, 1),
    ]
    xy: list[list[Cell]] = [[1, 2.0, 3.0], [2, 4.0, 5.0]]
    records = [
        factory.histogram("h", [1, 2, 3], [0.1, 0.2, 1e30, 2e30]),
        factory.histogram("wide", [1] * 1000, [float(edge) for edge in range(1001)], nan=1),
        factory.histogram("empty", [], []),
        ScalarRow(**AT, values={"loss": 0.5}),
        factory.image("plain", caption="a caption"),
        factory.image("boxed", boxes=boxes, class_labels={3: "cat", 1000: "tree"}),
        factory.masked("masked", CLASSES, class_labels={5: "road"}),
        factory.masked(
            "many-classes",
            CLASSES.astype(np.uint16) * 256,
            annotated=factory.save("drawn", png(PIXELS // 2), ".png"),
        ),
        factory.table("cells", [[1, "é"], [None, "x"], [2**62, ""]]),
        factory.table("floats", [[float("nan"), float("inf")], [-0.0, 5e-324]]),
        factory.table("mixed", [[1, True], ["one", None], [False, 2.5]]),
        factory.table("pictures", [[factory.picture(), 1], [factory.picture(), "two"]]),
        factory.table("large", [[n, n / 2] for n in range(10_050)]),
        factory.table("no-rows", []),
        factory.text("text", TEXT),
        factory.audio("sound"),
        factory.video("gif", GIF, ".gif"),
        factory.video("mp4", MP4, ".mp4"),
        factory.video("avi", AVI, ".avi"),
        factory.chart("line", "line", ["x", "y", "z"], xy, ["y"]),
        factory.chart("lines", "line", ["x", "y", "z"], xy, ["y", "z"]),
        factory.chart("scatter", "scatter", ["x", "y", "z"], xy, ["y"]),
        factory.chart("bars", "bar", ["x", "y", "z"], [["a", 2.0, 3.0]], ["y"]),
        factory.chart("bins", "histogram", ["x", "y", "z"], xy, []),
        factory.chart(
            "pairs", "confusion", ["is", "guess"], [[2, 2], [10, 2], [10, 10]], ["guess"]
        ),
        factory.chart(
            "classes", "confusion", ["is", "guess"], [[n, n] for n in range(150)], ["guess"]
        ),
        factory.chart("clouds", "scatter", ["x", "y", "z"], xy, ["y", "z"]),
        FileRecord(name="ckpt", file=copied, origin=str(checkpoint), copied=True, **AT),
        FileRecord(
            name="where-it-was",
            file=FileRef(str(checkpoint), 7, hashlib.sha256(b"weights").hexdigest()),
            origin=str(checkpoint),
            **AT,
        ),
        Rewind(step=3, epoch=1, time=AT["time"]),
        factory.image("on-epochs", axis="epoch", at=2),
        factory.image("on-tokens", axis="tokens", at=12.5),
    ]
    before = media_of(folder)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "WANDB_DATA_DIR": str(folder.parent / "wandb-data"),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_MODE": "offline",
        }.items():
            environment.setenv(name, value)
        write_all(factory, records)
    (folder / "before.json").write_text(json.dumps(before))
    return folder


def media_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "media").rglob("*")
        if path.is_file()
    }


def test_every_medium_is_a_separate_row(folder: Path) -> None:
    rows = list(wandb_rows(folder))
    assert [row["_step"] for row in rows] == list(range(32))
    assert (rows[3]["loss"], "loss" in rows[4], "plain" in rows[4]) == (0.5, False, True)


def test_row_of_a_medium_has_step_epoch_and_time(folder: Path) -> None:
    row = row_of(folder, "plain")
    assert (row["metricbus/step"], row["metricbus/epoch"]) == (7, 2)
    assert row["metricbus/time"] == AT["time"] / 1e9
    assert row["_timestamp"] == pytest.approx(row["metricbus/time"])


def test_medium_has_the_x_axis_of_its_series(folder: Path) -> None:
    assert row_of(folder, "on-tokens")["metricbus/x/tokens"] == 12.5
    metrics = {
        record.metric.name: record.metric.step_metric
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField("metric")
    }
    assert metrics["on-tokens"] == "metricbus/x/tokens"
    assert metrics["on-epochs"] == "metricbus/epoch"


def test_wandb_does_not_change_or_move_our_files(folder: Path) -> None:
    assert media_of(folder) == json.loads((folder / "before.json").read_text())


def test_media_are_hard_links_and_use_no_extra_space(folder: Path) -> None:
    path = row_of(folder, "plain")["plain"]["path"]
    assert wandb_path(folder, path).stat().st_nlink == 2


def test_histogram_has_its_counts_and_edges(folder: Path) -> None:
    assert row_of(folder, "h")["h"] == {
        "_type": "histogram",
        "values": [1, 2, 3],
        "bins": [0.1, 0.2, 1e30, 2e30],
    }


def test_neighboring_bins_of_a_large_histogram_are_merged(folder: Path) -> None:
    logged = row_of(folder, "wide")["wide"]
    assert logged["values"] == [2] * 500
    assert logged["bins"] == list(range(0, 1001, 2))


def test_empty_histogram_is_accepted(folder: Path) -> None:
    assert row_of(folder, "empty")["empty"]["values"] == [0]


def test_image_has_its_pixels_and_caption(folder: Path) -> None:
    logged = row_of(folder, "plain")["plain"]
    assert (logged["_type"], logged["caption"]) == ("image-file", "a caption")
    with Image.open(wandb_path(folder, logged["path"])) as picture:
        assert (np.asarray(picture) == PIXELS).all()


def boxes_in(folder: Path) -> Any:
    path = row_of(folder, "boxed")["boxed"]["boxes"]["boxes"]["path"]
    return json.loads(wandb_path(folder, path).read_text())


def test_boxes_are_wandb_boxes_in_pixels(folder: Path) -> None:
    first, second, third = boxes_in(folder)["box_data"]
    assert first["position"] == {"minX": 1, "maxX": 3.5, "minY": 2, "maxY": 4}
    assert {first["domain"], second["domain"]} == {"pixel"}
    assert (first["class_id"], first["scores"]) == (3, {"score": 0.5})
    assert (first["box_caption"], second["box_caption"]) == ("cat", "good dog")
    assert "scores" not in second
    assert third["box_caption"] == ""


def test_a_string_label_gets_an_unused_class_number(folder: Path) -> None:
    boxes = boxes_in(folder)
    labels = {int(id): text for id, text in boxes["class_labels"].items()}
    assert sorted(labels.values()) == ["cat", "dog", "tree", "unlabelled"]
    assert [labels[box["class_id"]] for box in boxes["box_data"]] == ["cat", "dog", "unlabelled"]
    config = wandb_config(folder)["_wandb"]["bounding_box/class_labels"]
    assert "dog" in config["boxed_wandb_delimeter_boxes"]["value"].values()


def test_a_string_label_has_the_same_class_number_in_every_image() -> None:
    file = FileRef("p", 0, "")

    def numbers(*labels: int | str | None) -> dict[str, int]:
        boxes = [Box(0, 0, 1, 1, label=label) for label in labels]
        record = ImageRecord(name="i", file=file, width=1, height=1, channels=1, boxes=boxes, **AT)
        return text_class_numbers(record)

    dog = numbers("dog")["dog"]
    assert numbers("cat", "dog", 3, None)["dog"] == dog
    assert numbers("dog", dog)["dog"] != dog


def test_masks_are_wandb_masks_with_names_for_all_classes(folder: Path) -> None:
    mask = row_of(folder, "masked")["masked"]["masks"]["seen"]
    with Image.open(wandb_path(folder, mask["path"])) as picture:
        assert (np.asarray(picture) == CLASSES).all()
    config = wandb_config(folder)["_wandb"]["mask/class_labels"]
    names = config["masked_wandb_delimeter_seen"]["value"]
    assert (names["5"], names["235"], len(names)) == ("road", "class_235", 48)


def test_a_mask_with_too_large_class_numbers_is_drawn_onto_the_image(folder: Path) -> None:
    logged = row_of(folder, "many-classes")["many-classes"]
    assert "masks" not in logged
    with Image.open(wandb_path(folder, logged["path"])) as picture:
        assert (np.asarray(picture) == PIXELS // 2).all()


def test_table_has_its_cells(folder: Path) -> None:
    logged = row_of(folder, "cells")["cells"]
    assert (logged["_type"], logged["nrows"]) == ("table-file", 3)
    assert table_of(folder, "cells") == {
        "columns": ["a", "b"],
        "data": [[1, "é"], [None, "x"], [2**62, ""]],
    }


def test_table_keeps_nonfinite_numbers(folder: Path) -> None:
    (nan, inf), (zero, least) = table_of(folder, "floats")["data"]
    assert (str(nan), inf, str(zero), least) == ("nan", float("inf"), "-0.0", 5e-324)


def test_table_column_can_mix_types(folder: Path) -> None:
    assert table_of(folder, "mixed")["data"] == [[1, True], ["one", None], [False, 2.5]]


def test_image_in_a_table_is_in_the_artifact(folder: Path) -> None:
    (files,) = (files for name, files in wandb_artifacts(folder) if name.endswith("-pictures"))
    (first, number), _ = json.loads(files["pictures.table.json"].read_text())["data"]
    assert (first["_type"], first["caption"], number) == ("image-file", "a cell", 1)
    with Image.open(files[first["path"]]) as picture:
        assert (np.asarray(picture) == PIXELS).all()


def test_large_table_is_not_truncated(folder: Path) -> None:
    assert len(table_of(folder, "large")["data"]) == 10_050
    (files,) = (files for name, files in wandb_artifacts(folder) if name.endswith("-large"))
    assert len(json.loads(files["large.table.json"].read_text())["data"]) == 10_050


def test_table_without_rows_is_accepted(folder: Path) -> None:
    assert table_of(folder, "no-rows") == {"columns": ["a", "b"], "data": []}


def test_text_is_logged_in_full(folder: Path) -> None:
    assert row_of(folder, "text")["text"] == TEXT


def test_audio_has_its_bytes_and_caption(folder: Path) -> None:
    logged = row_of(folder, "sound")["sound"]
    assert (logged["_type"], logged["caption"]) == ("audio-file", "a ramp")
    assert content_of(folder, "sound") == wav()


@pytest.mark.parametrize(("key", "content"), [("gif", GIF), ("mp4", MP4)])
def test_video_has_its_bytes_and_caption(folder: Path, key: str, content: bytes) -> None:
    logged = row_of(folder, key)[key]
    assert (logged["_type"], logged["caption"]) == ("video-file", "two frames")
    assert content_of(folder, key) == content


def test_video_in_an_unsupported_format_is_a_file(folder: Path) -> None:
    path = row_of(folder, "avi")["avi"]
    assert path.endswith(".avi")
    assert wandb_path(folder, path).read_bytes() == AVI


@pytest.mark.parametrize("key", ["ckpt", "where-it-was"])
def test_file_is_saved_with_the_run_under_its_own_name(folder: Path, key: str) -> None:
    path = row_of(folder, key)[key]
    assert Path(path).name == "model v1 _best_.pt"
    assert wandb_path(folder, path).read_bytes() == b"weights"


def chart_in(folder: Path, name: str) -> tuple[Any, Any]:
    """Return the data of a chart, and the panel with which W&B draws it."""
    panel = wandb_config(folder)["_wandb"]["visualize"][name]["panel_config"]
    return table_of(folder, f"Custom Chart Tables/{name}_table"), panel


@pytest.mark.parametrize(
    ("name", "spec", "fields"),
    [
        ("line", "wandb/line/v0", {"x": "x", "y": "y"}),
        ("scatter", "wandb/scatter/v0", {"x": "x", "y": "y"}),
        ("bars", "wandb/bar/v0", {"label": "x", "value": "y"}),
        ("bins", "wandb/histogram/v0", {"value": "x"}),
    ],
)
def test_chart_is_a_wandb_chart(folder: Path, name: str, spec: str, fields: dict[str, str]) -> None:
    data, panel = chart_in(folder, name)
    assert panel["panelDefId"] == spec
    assert panel["fieldSettings"].items() >= fields.items()
    assert panel["stringSettings"]["title"] == "Title"
    rows = [["a", 2, 3]] if name == "bars" else [[1, 2, 3], [2, 4, 5]]
    assert data == {"columns": ["x", "y", "z"], "data": rows}


def test_chart_with_several_lines_has_a_series_for_each(folder: Path) -> None:
    data, panel = chart_in(folder, "lines")
    assert panel["panelDefId"] == "wandb/lineseries/v0"
    assert data["data"] == [[1, "y", 2], [2, "y", 4], [1, "z", 3], [2, "z", 5]]


def test_confusion_chart_counts_pairs(folder: Path) -> None:
    data, _ = chart_in(folder, "pairs")
    assert data["columns"] == ["Actual", "Predicted", "nPredictions"]
    assert data["data"] == [["2", "2", 1], ["2", "10", 0], ["10", "2", 1], ["10", "10", 1]]


def test_confusion_chart_with_many_classes_is_not_truncated(folder: Path) -> None:
    data, _ = chart_in(folder, "classes")
    assert len(data["data"]) == 150**2


def test_unsupported_chart_is_an_image(folder: Path) -> None:
    with Image.open(io.BytesIO(content_of(folder, "clouds"))) as picture:
        assert (np.asarray(picture) == PIXELS).all()


def test_warns_about_each_fallback_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    factory = RecordFactory(tmp_path)
    wide = factory.histogram("h", [1] * 1000, [float(edge) for edge in range(1001)])
    write_all(factory, [wide, wide, factory.video("v", AVI, ".avi")])
    assert (
        caplog.text.count(
            "wandb does not support histograms with over 512 bins; logging merged bins"
        )
        == 1
    )
    assert "wandb does not support .avi videos; logging the file" in caplog.text


def test_only_new_rows_of_a_table_are_logged_after_reopening(tmp_path: Path) -> None:
    factory = RecordFactory(tmp_path)
    parts: list[list[list[Cell]]] = [
        [[1, "one"], [2, "two"]],
        [[3, factory.picture()]],
        [[4, None]],
    ]
    first, second, third = (
        factory.table("grows", rows, part, start)
        for part, (rows, start) in enumerate(zip(parts, (0, 2, 3), strict=True))
    )
    sink = open_sink(factory, id="grows1")
    sink.write([first, second])
    state = sink.flush().state
    sink.close("running")
    again = open_sink(factory, rows=state["rows"], id="grows2")  # W&B allows an id once per process
    again.write([third])
    again.flush()
    again.close("finished")
    rows = list(wandb_rows(tmp_path))
    assert [row["metricbus/first_row"] for row in rows] == [0, 2, 3]
    assert {row["metricbus/table"] for row in rows} == {"t1"}
    tables = [json.loads(wandb_path(tmp_path, row["grows"]["path"]).read_text()) for row in rows]
    assert [table["data"] for table in tables] == [parts[0], [[3, "Image"]], parts[2]]


def test_repeated_delivery_duplicates_nothing(tmp_path: Path) -> None:
    factory = RecordFactory(tmp_path)
    records: list[Any] = [
        factory.image("i"),
        factory.table("t", [[1, 2]]),
        factory.text("s", "text"),
        ScalarRow(**AT, values={"x": 1.0}),
        factory.histogram("h", [1], [0.0, 1.0]),
    ]
    sink = open_sink(factory, id="again1")
    sink.write(records)
    sink.close("running")
    assert sink.flush().acknowledged == 5
    again = open_sink(factory, id="again2")
    again.write([*records, factory.image("new")])
    again.flush()
    again.close("finished")
    rows = list(wandb_rows(tmp_path))
    assert [row["_step"] for row in rows] == list(range(6))
    assert ["new" in row for row in rows] == [False] * 5 + [True]


def test_nothing_is_logged_if_a_file_is_missing(tmp_path: Path) -> None:
    factory = RecordFactory(tmp_path)
    lost, kept = factory.image("lost"), factory.image("kept")
    (tmp_path / lost.file.path).unlink()
    sink = open_sink(factory)
    with pytest.raises(MediaError, match="is missing"):
        sink.write([kept, lost])
    sink.write([kept])
    sink.flush()
    sink.close("finished")
    (row,) = wandb_rows(tmp_path)
    assert (row["_step"], "kept" in row) == (0, True)


def test_nothing_is_logged_if_an_image_of_a_table_is_missing(tmp_path: Path) -> None:
    factory = RecordFactory(tmp_path)
    picture = factory.picture()
    table = factory.table("t", [[picture, 1]])
    (tmp_path / picture.file.path).unlink()
    sink = open_sink(factory)
    with pytest.raises(MediaError, match="is missing"):
        sink.write([ScalarRow(**AT, values={"x": 1.0}), table])
    sink.close("finished")
    assert list(wandb_rows(tmp_path)) == []


def test_a_file_deleted_after_delivery_does_not_shift_rows(tmp_path: Path) -> None:
    factory = RecordFactory(tmp_path)
    image = factory.image("i")
    sink = open_sink(factory, id="gone1")
    sink.write([image])
    sink.close("running")
    (tmp_path / image.file.path).unlink()
    again = open_sink(factory, id="gone2")
    again.write([image, ScalarRow(**AT, values={"x": 1.0})])
    again.close("finished")
    assert [row["_step"] for row in wandb_rows(tmp_path)] == [0, 1]


def test_an_invalid_image_file_is_rejected(tmp_path: Path) -> None:
    factory = RecordFactory(tmp_path)
    file = factory.save("i", b"no png", ".png")
    sink = open_sink(factory)
    with pytest.raises(RecordsRejectedError, match="is not an image"):
        sink.write([ImageRecord(name="i", file=file, width=1, height=1, channels=1, **AT)])
    sink.close("finished")


def test_only_tables_are_rejected_without_a_staging_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "a-file"))
    factory = RecordFactory(tmp_path)
    sink = open_sink(factory)
    with pytest.raises(RecordsRejectedError, match="WANDB_DATA_DIR"):
        sink.write([factory.table("t", [[1, 2]])])
    sink.write([factory.image("i")])
    sink.close("finished")
    assert ["i" in row for row in wandb_rows(tmp_path)] == [True]


ODD_NAMES = [
    "../../up",
    "/etc/x",
    "a/b",
    "a//b",
    "..",
    ".",
    'say "x"',
    "long" * 200,
    "x/" + "y" * 250,
    "🦆",
    "_step",
    "a[1]",
    "what?",
    "a*b",
    "back\\slash",
    "\\",
    "new\nline",
    "metricbus/step",
    "a.b",
    "Custom Chart Tables/c_table",
    "100%",
    "#1",
    " ",
    "c",
]


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with media of odd names."""
    folder = tmp_path_factory.mktemp("odd")
    factory = RecordFactory(folder)
    records: list[MediumRecord] = []
    for name in ODD_NAMES:
        records += [
            factory.image(name, caption=name, boxes=[Box(0, 0, 1, 1, label=name)]),
            factory.table(name, [[1, name]]),
            factory.audio(name),
            factory.text(name, name),
            factory.chart(name, "line", ["x", "y"], [[1, 2.0]], ["y"]),
            factory.video(name, AVI, ".avi"),
            factory.histogram(name, [1], [0.0, 1.0]),
        ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_DATA_DIR", str(folder.parent / "wandb-data"))
        environment.setenv("WANDB_MODE", "offline")
        write_all(factory, records)
    return folder


def odd_rows(folder: Path, type: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for row in wandb_rows(folder):
        for key, value in row.items():
            if isinstance(value, dict) and value["_type"] == type:
                yield key, value, row


def test_images_of_odd_names_have_distinct_columns(odd_run: Path) -> None:
    images = list(odd_rows(odd_run, "image-file"))
    assert [logged["caption"] for _, logged, _ in images] == ODD_NAMES
    assert len({column for column, _, _ in images}) == len(ODD_NAMES)
    files = odd_run / "wandb"
    for _, logged, _ in images:
        path = wandb_path(odd_run, logged["path"])
        assert path.resolve().is_relative_to(files.resolve())
        with Image.open(path) as picture:
            assert (np.asarray(picture) == PIXELS).all()


def test_tables_of_odd_names_have_distinct_columns(odd_run: Path) -> None:
    columns = [(column, logged) for column, logged, _ in odd_rows(odd_run, "table-file")]
    tables = [logged for column, logged in columns if not column.startswith(CHARTS_PREFIX)]
    cells = [
        json.loads(wandb_path(odd_run, logged["path"]).read_text())["data"] for logged in tables
    ]
    assert cells == [[[1, name]] for name in ODD_NAMES]
    assert len({column for column, _ in columns}) == 2 * len(ODD_NAMES)


def test_artifacts_of_odd_names_are_distinct(odd_run: Path) -> None:
    names = [name for name, _ in wandb_artifacts(odd_run)]
    assert len(set(names)) == len(names) == 2 * len(ODD_NAMES)


def test_row_has_the_original_of_a_changed_name(odd_run: Path) -> None:
    for column, logged, row in odd_rows(odd_run, "image-file"):
        name = logged["caption"]
        if column != column_name(name):
            assert row["metricbus/name"] == name


def test_paths_of_odd_names_have_no_pattern_characters(odd_run: Path) -> None:
    """W&B interprets file names as glob patterns."""
    for file in (odd_run / "wandb").rglob("files/*/**/*"):
        assert not set('*?[]\\:"<>|\n') & set(file.relative_to(odd_run).as_posix())


def test_writes_only_into_its_own_folders(odd_run: Path) -> None:
    assert {path.name for path in odd_run.iterdir()} == {"media", "wandb"}
    assert not (odd_run.parent / "up").exists()


def test_killing_the_service_process_neither_loses_nor_duplicates_media(tmp_path: Path) -> None:
    code = """
        import os, signal, subprocess, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from tests.sinks.test_wandb_media import RecordFactory, open_sink
        from metricbus.errors import RecordsLostError
        from metricbus._journal.run import Run
        factory = RecordFactory(Path("."))
        records = [factory.image("i"), factory.table("t", [[1, 2]]), factory.audio("a")] * 20
        sink = open_sink(factory, id="r")
        sink.write(records[:30])
        children = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
        for pid in subprocess.check_output(children).split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            while True:
                sink.write(records[30:])
        except RecordsLostError:
            sink.open(Run(id="r", name="media", started=1), factory.folder, {})
        sink.write(records)
        sink.close("finished")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parents[2])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = list(wandb_rows(tmp_path))
    assert [row["_step"] for row in rows] == list(range(60))
    assert [key for row in rows for key in "ita" if key in row] == ["i", "t", "a"] * 20


NAMES = st.one_of(st.text(), st.sampled_from(ODD_NAMES), st.text("a./_", max_size=5))


@given(st.sets(NAMES, min_size=2), st.integers(24, 128))
def test_every_name_has_a_distinct_file_column(names: set[str], max_length: int) -> None:
    columns = {name: file_column_name(name, max_length) for name in names}
    assert len(set(columns.values())) == len(names)
    for name, column in columns.items():
        assert len(column) <= max_length
        assert column not in {column_name(other) for other in names - {name}}


def test_the_longest_run_id_leaves_room_for_table_columns() -> None:
    assert max_table_column_length("x" * 64) >= 24


def test_media_do_not_set_the_global_run(folder: Path) -> None:
    assert wandb.run is None


def test_a_rejected_record_does_not_shift_rows_in_a_repeated_delivery(tmp_path: Path) -> None:
    factory = RecordFactory(tmp_path)
    lost = factory.image("lost")
    (tmp_path / lost.file.path).unlink()
    rows = [ScalarRow(**AT, values={"x": float(number)}) for number in range(6)]
    first = open_sink(factory, id="again1")
    first.write(rows[:3])
    with pytest.raises(MediaError):
        first.write([lost])
    first.write(rows[3:5])
    first.close("running")
    assert first.flush().acknowledged == 5
    again = open_sink(factory, id="again2")
    again.write(rows[:3])
    again.write(rows[3:5])
    again.write(rows[5:])
    again.close("finished")
    assert [row["x"] for row in wandb_rows(tmp_path)] == [0, 1, 2, 3, 4, 5]

"""Media in Weights & Biases, read back from W&B's own files."""

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
    ImageRecord,
    MediumRecord,
    Picture,
    TableRecord,
    TextRecord,
    VideoRecord,
    encode_rows,
)
from metricbus._common.records import Rewind, Scalars
from metricbus._journal.media_files import MediaWriter
from metricbus._journal.run import Run
from metricbus.errors import MediaError, Rejected
from metricbus.sinks.wandb.names import (
    CHARTS,
    file_key,
    key_of,
    longest_of_tables,
    numbers_of_texts,
)
from metricbus.sinks.wandb.sink import WandbOptions, WandbSink
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


class Made:
    """Makes the records of one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = MediaWriter(folder, "s")

    def save(self, name: str, content: bytes, suffix: str) -> FileRef:
        return self.writer.save("made", name, 7, suffix, content)

    def image(self, name: str, **about: Any) -> ImageRecord:
        file = self.save(name, png(PIXELS), ".png")
        return ImageRecord(name=name, file=file, width=8, height=6, channels=3, **AT, **about)

    def masked(self, name: str, mask: np.ndarray[Any, Any], **about: Any) -> ImageRecord:
        return self.image(name, masks={"seen": self.save(name, png(mask), ".png")}, **about)

    def picture(self) -> Picture:
        return Picture(self.save("cell", png(PIXELS), ".png"), 8, 6, 3, "a cell")

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

    def histogram(self, name: str, counts: list[int], edges: list[float], **about: Any) -> Any:
        count = sum(counts)
        return HistogramRecord(name=name, counts=counts, edges=edges, count=count, **AT, **about)


def opened(made: Made, rows: int = 0, id: str | None = None) -> WandbSink:
    run = Run(id=id or f"r{time.time_ns()}", name="media", started=1)
    sink = WandbSink(options=WandbOptions(mode="offline"))
    sink.open(run, made.folder, {"rows": rows} if rows else {})
    return sink


def deliver(made: Made, records: list[Any]) -> None:
    sink = opened(made)
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
    """Where W&B keeps the files of tables until they are sent."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))


GIF, MP4, AVI = b"GIF89a and so on", b"an mp4", b"an avi"
TEXT = "# Title\n\n*é* 🦆\n" * 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a medium of each sort."""
    folder = tmp_path_factory.mktemp("run")
    made = Made(folder)
    checkpoint = folder / "model v1 [best].pt"
    checkpoint.write_bytes(b"weights")
    copied = made.writer.copy("files", "ckpt", 7, checkpoint)
    boxes = [
        Box(1, 2, 3.5, 4, label=3, score=0.5),
        Box(0, 0, 8, 6, label="dog", caption="good dog"),
        Box(0, 0, 1, 1),
    ]
    xy: list[list[Cell]] = [[1, 2.0, 3.0], [2, 4.0, 5.0]]
    records = [
        made.histogram("h", [1, 2, 3], [0.1, 0.2, 1e30, 2e30]),
        made.histogram("wide", [1] * 1000, [float(edge) for edge in range(1001)], nan=1),
        made.histogram("empty", [], []),
        Scalars(**AT, values={"loss": 0.5}),
        made.image("plain", caption="a caption"),
        made.image("boxed", boxes=boxes, class_labels={3: "cat", 1000: "tree"}),
        made.masked("masked", CLASSES, class_labels={5: "road"}),
        made.masked(
            "many-classes",
            CLASSES.astype(np.uint16) * 256,
            annotated=made.save("drawn", png(PIXELS // 2), ".png"),
        ),
        made.table("cells", [[1, "é"], [None, "x"], [2**62, ""]]),
        made.table("floats", [[float("nan"), float("inf")], [-0.0, 5e-324]]),
        made.table("mixed", [[1, True], ["one", None], [False, 2.5]]),
        made.table("pictures", [[made.picture(), 1], [made.picture(), "two"]]),
        made.table("large", [[n, n / 2] for n in range(10_050)]),
        made.table("no-rows", []),
        made.text("text", TEXT),
        made.audio("sound"),
        made.video("gif", GIF, ".gif"),
        made.video("mp4", MP4, ".mp4"),
        made.video("avi", AVI, ".avi"),
        made.chart("line", "line", ["x", "y", "z"], xy, ["y"]),
        made.chart("lines", "line", ["x", "y", "z"], xy, ["y", "z"]),
        made.chart("scatter", "scatter", ["x", "y", "z"], xy, ["y"]),
        made.chart("bars", "bar", ["x", "y", "z"], [["a", 2.0, 3.0]], ["y"]),
        made.chart("bins", "histogram", ["x", "y", "z"], xy, []),
        made.chart("pairs", "confusion", ["is", "guess"], [[2, 2], [10, 2], [10, 10]], ["guess"]),
        made.chart(
            "classes", "confusion", ["is", "guess"], [[n, n] for n in range(150)], ["guess"]
        ),
        made.chart("clouds", "scatter", ["x", "y", "z"], xy, ["y", "z"]),
        FileRecord(name="ckpt", file=copied, origin=str(checkpoint), copied=True, **AT),
        FileRecord(
            name="where-it-was",
            file=FileRef(str(checkpoint), 7, hashlib.sha256(b"weights").hexdigest()),
            origin=str(checkpoint),
            **AT,
        ),
        Rewind(step=3, epoch=1, time=AT["time"]),
        made.image("on-epochs", axis="epoch", at=2),
        made.image("on-tokens", axis="tokens", at=12.5),
    ]
    before = media_of(folder)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "WANDB_DATA_DIR": str(folder.parent / "wandb-data"),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_MODE": "offline",
        }.items():
            environment.setenv(name, value)
        deliver(made, records)
    (folder / "before.json").write_text(json.dumps(before))
    return folder


def media_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "media").rglob("*")
        if path.is_file()
    }


def test_a_medium_is_a_row_with_a_number_of_its_own(folder: Path) -> None:
    rows = list(wandb_rows(folder))
    assert [row["_step"] for row in rows] == list(range(32))
    assert (rows[3]["loss"], "loss" in rows[4], "plain" in rows[4]) == (0.5, False, True)


def test_a_mediums_row_has_step_epoch_and_time(folder: Path) -> None:
    row = row_of(folder, "plain")
    assert (row["metricbus/step"], row["metricbus/epoch"]) == (7, 2)
    assert row["metricbus/time"] == AT["time"] / 1e9
    assert row["_timestamp"] == pytest.approx(row["metricbus/time"])


def test_a_medium_stands_on_its_axis(folder: Path) -> None:
    assert row_of(folder, "on-tokens")["metricbus/x/tokens"] == 12.5
    metrics = {
        record.metric.name: record.metric.step_metric
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField("metric")
    }
    assert metrics["on-tokens"] == "metricbus/x/tokens"
    assert metrics["on-epochs"] == "metricbus/epoch"


def test_wandb_leaves_our_files_where_and_what_they_were(folder: Path) -> None:
    assert media_of(folder) == json.loads((folder / "before.json").read_text())


def test_media_take_no_second_place_on_the_disk(folder: Path) -> None:
    path = row_of(folder, "plain")["plain"]["path"]
    assert wandb_path(folder, path).stat().st_nlink == 2


def test_a_histogram_has_its_counts_and_edges(folder: Path) -> None:
    assert row_of(folder, "h")["h"] == {
        "_type": "histogram",
        "values": [1, 2, 3],
        "bins": [0.1, 0.2, 1e30, 2e30],
    }


def test_a_histogram_with_too_many_bins_has_neighbours_joined(folder: Path) -> None:
    found = row_of(folder, "wide")["wide"]
    assert found["values"] == [2] * 500
    assert found["bins"] == list(range(0, 1001, 2))


def test_a_histogram_of_nothing_is_taken(folder: Path) -> None:
    assert row_of(folder, "empty")["empty"]["values"] == [0]


def test_an_image_has_its_pixels_and_caption(folder: Path) -> None:
    shown = row_of(folder, "plain")["plain"]
    assert (shown["_type"], shown["caption"]) == ("image-file", "a caption")
    with Image.open(wandb_path(folder, shown["path"])) as picture:
        assert (np.asarray(picture) == PIXELS).all()


def boxes_in(folder: Path) -> Any:
    path = row_of(folder, "boxed")["boxed"]["boxes"]["boxes"]["path"]
    return json.loads(wandb_path(folder, path).read_text())


def test_boxes_are_wandbs_own_in_pixels(folder: Path) -> None:
    first, second, third = boxes_in(folder)["box_data"]
    assert first["position"] == {"minX": 1, "maxX": 3.5, "minY": 2, "maxY": 4}
    assert {first["domain"], second["domain"]} == {"pixel"}
    assert (first["class_id"], first["scores"]) == (3, {"score": 0.5})
    assert (first["box_caption"], second["box_caption"]) == ("cat", "good dog")
    assert "scores" not in second
    assert third["box_caption"] == ""


def test_a_label_that_is_text_gets_a_class_number_that_no_other_has(folder: Path) -> None:
    found = boxes_in(folder)
    labels = {int(id): text for id, text in found["class_labels"].items()}
    assert sorted(labels.values()) == ["cat", "dog", "tree", "unlabelled"]
    assert [labels[box["class_id"]] for box in found["box_data"]] == ["cat", "dog", "unlabelled"]
    config = wandb_config(folder)["_wandb"]["bounding_box/class_labels"]
    assert "dog" in config["boxed_wandb_delimeter_boxes"]["value"].values()


def test_a_text_has_the_same_class_number_in_every_picture() -> None:
    file = FileRef("p", 0, "")

    def numbers(*labels: int | str | None) -> dict[str, int]:
        boxes = [Box(0, 0, 1, 1, label=label) for label in labels]
        record = ImageRecord(name="i", file=file, width=1, height=1, channels=1, boxes=boxes, **AT)
        return numbers_of_texts(record)

    dog = numbers("dog")["dog"]
    assert numbers("cat", "dog", 3, None)["dog"] == dog
    assert numbers("dog", dog)["dog"] != dog


def test_masks_are_wandbs_own_with_all_class_numbers_and_their_names(folder: Path) -> None:
    mask = row_of(folder, "masked")["masked"]["masks"]["seen"]
    with Image.open(wandb_path(folder, mask["path"])) as picture:
        assert (np.asarray(picture) == CLASSES).all()
    config = wandb_config(folder)["_wandb"]["mask/class_labels"]
    names = config["masked_wandb_delimeter_seen"]["value"]
    assert (names["5"], names["235"], len(names)) == ("road", "class_235", 48)


def test_a_mask_with_too_many_classes_is_drawn_onto_the_picture(folder: Path) -> None:
    shown = row_of(folder, "many-classes")["many-classes"]
    assert "masks" not in shown
    with Image.open(wandb_path(folder, shown["path"])) as picture:
        assert (np.asarray(picture) == PIXELS // 2).all()


def test_a_table_has_its_cells(folder: Path) -> None:
    shown = row_of(folder, "cells")["cells"]
    assert (shown["_type"], shown["nrows"]) == ("table-file", 3)
    assert table_of(folder, "cells") == {
        "columns": ["a", "b"],
        "data": [[1, "é"], [None, "x"], [2**62, ""]],
    }


def test_a_table_keeps_nan_and_the_infinities(folder: Path) -> None:
    (nan, inf), (zero, least) = table_of(folder, "floats")["data"]
    assert (str(nan), inf, str(zero), least) == ("nan", float("inf"), "-0.0", 5e-324)


def test_a_column_may_mix_types(folder: Path) -> None:
    assert table_of(folder, "mixed")["data"] == [[1, True], ["one", None], [False, 2.5]]


def test_a_picture_in_a_table_is_an_image_in_its_artifact(folder: Path) -> None:
    (files,) = (files for name, files in wandb_artifacts(folder) if name.endswith("-pictures"))
    (first, number), _ = json.loads(files["pictures.table.json"].read_text())["data"]
    assert (first["_type"], first["caption"], number) == ("image-file", "a cell", 1)
    with Image.open(files[first["path"]]) as picture:
        assert (np.asarray(picture) == PIXELS).all()


def test_a_large_table_is_not_cut(folder: Path) -> None:
    assert len(table_of(folder, "large")["data"]) == 10_050
    (files,) = (files for name, files in wandb_artifacts(folder) if name.endswith("-large"))
    assert len(json.loads(files["large.table.json"].read_text())["data"]) == 10_050


def test_a_table_without_rows_is_taken(folder: Path) -> None:
    assert table_of(folder, "no-rows") == {"columns": ["a", "b"], "data": []}


def test_a_text_is_itself(folder: Path) -> None:
    assert row_of(folder, "text")["text"] == TEXT


def test_a_sound_has_its_bytes_and_caption(folder: Path) -> None:
    shown = row_of(folder, "sound")["sound"]
    assert (shown["_type"], shown["caption"]) == ("audio-file", "a ramp")
    assert content_of(folder, "sound") == wav()


@pytest.mark.parametrize(("key", "content"), [("gif", GIF), ("mp4", MP4)])
def test_a_video_has_its_bytes_and_caption(folder: Path, key: str, content: bytes) -> None:
    shown = row_of(folder, key)[key]
    assert (shown["_type"], shown["caption"]) == ("video-file", "two frames")
    assert content_of(folder, key) == content


def test_a_video_that_wandb_cannot_play_is_a_file(folder: Path) -> None:
    path = row_of(folder, "avi")["avi"]
    assert path.endswith(".avi")
    assert wandb_path(folder, path).read_bytes() == AVI


@pytest.mark.parametrize("key", ["ckpt", "where-it-was"])
def test_a_file_is_among_the_runs_under_its_name(folder: Path, key: str) -> None:
    path = row_of(folder, key)[key]
    assert Path(path).name == "model v1 _best_.pt"
    assert wandb_path(folder, path).read_bytes() == b"weights"


def chart_in(folder: Path, name: str) -> tuple[Any, Any]:
    """The chart's data and what W&B draws of them."""
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
def test_a_chart_is_drawn_by_wandb(
    folder: Path, name: str, spec: str, fields: dict[str, str]
) -> None:
    data, panel = chart_in(folder, name)
    assert panel["panelDefId"] == spec
    assert panel["fieldSettings"].items() >= fields.items()
    assert panel["stringSettings"]["title"] == "Title"
    rows = [["a", 2, 3]] if name == "bars" else [[1, 2, 3], [2, 4, 5]]
    assert data == {"columns": ["x", "y", "z"], "data": rows}


def test_several_lines_are_a_series_each(folder: Path) -> None:
    data, panel = chart_in(folder, "lines")
    assert panel["panelDefId"] == "wandb/lineseries/v0"
    assert data["data"] == [[1, "y", 2], [2, "y", 4], [1, "z", 3], [2, "z", 5]]


def test_a_confusion_chart_counts_pairs(folder: Path) -> None:
    data, _ = chart_in(folder, "pairs")
    assert data["columns"] == ["Actual", "Predicted", "nPredictions"]
    assert data["data"] == [["2", "2", 1], ["2", "10", 0], ["10", "2", 1], ["10", "10", 1]]


def test_a_confusion_chart_of_many_classes_is_not_cut(folder: Path) -> None:
    data, _ = chart_in(folder, "classes")
    assert len(data["data"]) == 150**2


def test_a_chart_that_wandb_cannot_draw_is_a_picture(folder: Path) -> None:
    with Image.open(io.BytesIO(content_of(folder, "clouds"))) as picture:
        assert (np.asarray(picture) == PIXELS).all()


def test_what_becomes_something_less_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Made(tmp_path)
    wide = made.histogram("h", [1] * 1000, [float(edge) for edge in range(1001)])
    deliver(made, [wide, wide, made.video("v", AVI, ".avi")])
    assert caplog.text.count("wandb takes no histogram as it is: it gets 512 bins") == 1
    assert "wandb takes no video (.avi) as it is: it gets the file" in caplog.text


def test_a_table_grows_over_a_reopening_by_its_new_rows_alone(tmp_path: Path) -> None:
    made = Made(tmp_path)
    parts: list[list[list[Cell]]] = [[[1, "one"], [2, "two"]], [[3, made.picture()]], [[4, None]]]
    first, second, third = (
        made.table("grows", rows, part, start)
        for part, (rows, start) in enumerate(zip(parts, (0, 2, 3), strict=True))
    )
    sink = opened(made, id="grows1")
    sink.write([first, second])
    state = sink.flush()
    sink.close("running")
    again = opened(made, rows=state["rows"], id="grows2")  # W&B takes an id once in a process
    again.write([third])
    again.flush()
    again.close("finished")
    rows = list(wandb_rows(tmp_path))
    assert [row["metricbus/first_row"] for row in rows] == [0, 2, 3]
    assert {row["metricbus/table"] for row in rows} == {"t1"}
    tables = [json.loads(wandb_path(tmp_path, row["grows"]["path"]).read_text()) for row in rows]
    assert [table["data"] for table in tables] == [parts[0], [[3, "Image"]], parts[2]]


def test_delivering_again_doubles_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path)
    records: list[Any] = [
        made.image("i"),
        made.table("t", [[1, 2]]),
        made.text("s", "text"),
        Scalars(**AT, values={"x": 1.0}),
        made.histogram("h", [1], [0.0, 1.0]),
    ]
    sink = opened(made, id="again1")
    sink.write(records)
    sink.close("running")
    assert sink.acknowledged() == 5
    again = opened(made, id="again2")
    again.write([*records, made.image("new")])
    again.flush()
    again.close("finished")
    rows = list(wandb_rows(tmp_path))
    assert [row["_step"] for row in rows] == list(range(6))
    assert ["new" in row for row in rows] == [False] * 5 + [True]


def test_a_missing_file_is_an_error_before_anything_is_logged(tmp_path: Path) -> None:
    made = Made(tmp_path)
    lost, kept = made.image("lost"), made.image("kept")
    (tmp_path / lost.file.path).unlink()
    sink = opened(made)
    with pytest.raises(MediaError, match="is missing"):
        sink.write([kept, lost])
    sink.write([kept])
    sink.flush()
    sink.close("finished")
    (row,) = wandb_rows(tmp_path)
    assert (row["_step"], "kept" in row) == (0, True)


def test_a_missing_picture_in_a_table_is_an_error_before_anything_is_logged(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path)
    picture = made.picture()
    table = made.table("t", [[picture, 1]])
    (tmp_path / picture.file.path).unlink()
    sink = opened(made)
    with pytest.raises(MediaError, match="is missing"):
        sink.write([Scalars(**AT, values={"x": 1.0}), table])
    sink.close("finished")
    assert list(wandb_rows(tmp_path)) == []


def test_a_file_that_is_gone_after_it_was_delivered_shifts_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path)
    image = made.image("i")
    sink = opened(made, id="gone1")
    sink.write([image])
    sink.close("running")
    (tmp_path / image.file.path).unlink()
    again = opened(made, id="gone2")
    again.write([image, Scalars(**AT, values={"x": 1.0})])
    again.close("finished")
    assert [row["_step"] for row in wandb_rows(tmp_path)] == [0, 1]


def test_a_picture_that_is_none_is_rejected(tmp_path: Path) -> None:
    made = Made(tmp_path)
    file = made.save("i", b"no png", ".png")
    sink = opened(made)
    with pytest.raises(Rejected, match="is no picture"):
        sink.write([ImageRecord(name="i", file=file, width=1, height=1, channels=1, **AT)])
    sink.close("finished")


def test_without_a_place_for_tables_a_table_is_rejected_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "a-file"))
    made = Made(tmp_path)
    sink = opened(made)
    with pytest.raises(Rejected, match="WANDB_DATA_DIR"):
        sink.write([made.table("t", [[1, 2]])])
    sink.write([made.image("i")])
    sink.close("finished")
    assert ["i" in row for row in wandb_rows(tmp_path)] == [True]


ODD = [
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
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with odd names."""
    folder = tmp_path_factory.mktemp("odd")
    made = Made(folder)
    records: list[MediumRecord] = []
    for name in ODD:
        records += [
            made.image(name, caption=name, boxes=[Box(0, 0, 1, 1, label=name)]),
            made.table(name, [[1, name]]),
            made.audio(name),
            made.text(name, name),
            made.chart(name, "line", ["x", "y"], [[1, 2.0]], ["y"]),
            made.video(name, AVI, ".avi"),
            made.histogram(name, [1], [0.0, 1.0]),
        ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_DATA_DIR", str(folder.parent / "wandb-data"))
        environment.setenv("WANDB_MODE", "offline")
        deliver(made, records)
    return folder


def odd_rows(folder: Path, type: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for row in wandb_rows(folder):
        for key, value in row.items():
            if isinstance(value, dict) and value["_type"] == type:
                yield key, value, row


def test_a_picture_of_any_name_is_kept_under_a_column_of_its_own(odd: Path) -> None:
    found = list(odd_rows(odd, "image-file"))
    assert [shown["caption"] for _, shown, _ in found] == ODD
    assert len({key for key, _, _ in found}) == len(ODD)
    files = odd / "wandb"
    for _, shown, _ in found:
        path = wandb_path(odd, shown["path"])
        assert path.resolve().is_relative_to(files.resolve())
        with Image.open(path) as picture:
            assert (np.asarray(picture) == PIXELS).all()


def test_a_table_of_any_name_is_kept_under_a_column_of_its_own(odd: Path) -> None:
    found = [(key, shown) for key, shown, _ in odd_rows(odd, "table-file")]
    tables = [(key, shown) for key, shown in found if not key.startswith(CHARTS)]
    cells = [json.loads(wandb_path(odd, shown["path"]).read_text())["data"] for _, shown in tables]
    assert cells == [[[1, name]] for name in ODD]
    assert len({key for key, _ in found}) == 2 * len(ODD)


def test_artifacts_of_odd_names_stay_apart(odd: Path) -> None:
    names = [name for name, _ in wandb_artifacts(odd)]
    assert len(set(names)) == len(names) == 2 * len(ODD)


def test_a_name_that_was_changed_is_beside_the_medium(odd: Path) -> None:
    for key, shown, row in odd_rows(odd, "image-file"):
        name = shown["caption"]
        if key != key_of(name):
            assert row["metricbus/name"] == name


def test_files_of_odd_names_can_be_sent(odd: Path) -> None:
    """W&B takes the names of files for patterns."""
    for file in (odd / "wandb").rglob("files/*/**/*"):
        assert not set('*?[]\\:"<>|\n') & set(file.relative_to(odd).as_posix())


def test_nothing_is_written_elsewhere(odd: Path) -> None:
    assert {path.name for path in odd.iterdir()} == {"media", "wandb"}
    assert not (odd.parent / "up").exists()


def test_the_death_of_wandbs_own_process_loses_and_doubles_no_medium(tmp_path: Path) -> None:
    code = """
        import os, signal, subprocess, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from tests.sinks.test_wandb_media import Made, opened
        from metricbus.errors import Lost
        from metricbus._journal.run import Run
        made = Made(Path("."))
        records = [made.image("i"), made.table("t", [[1, 2]]), made.audio("a")] * 20
        sink = opened(made, id="r")
        sink.write(records[:30])
        children = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
        for pid in subprocess.check_output(children).split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            while True:
                sink.write(records[30:])
        except Lost:
            sink.open(Run(id="r", name="media", started=1), made.folder, {})
        sink.write(records)
        sink.close("finished")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parents[2])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = list(wandb_rows(tmp_path))
    assert [row["_step"] for row in rows] == list(range(60))
    assert [key for row in rows for key in "ita" if key in row] == ["i", "t", "a"] * 20


NAMES = st.one_of(st.text(), st.sampled_from(ODD), st.text("a./_", max_size=5))


@given(st.sets(NAMES, min_size=2), st.integers(24, 128))
def test_no_two_media_share_a_column(names: set[str], longest: int) -> None:
    keys = {name: file_key(name, longest) for name in names}
    assert len(set(keys.values())) == len(names)
    for name, key in keys.items():
        assert len(key) <= longest
        assert key not in {key_of(other) for other in names - {name}}


def test_the_longest_id_leaves_room_for_the_names_of_tables() -> None:
    assert longest_of_tables("x" * 64) >= 24


def test_media_need_no_wandb_run_of_the_script(folder: Path) -> None:
    assert wandb.run is None


def test_a_rejected_record_shifts_no_row_when_all_come_again(tmp_path: Path) -> None:
    made = Made(tmp_path)
    lost = made.image("lost")
    (tmp_path / lost.file.path).unlink()
    rows = [Scalars(**AT, values={"x": float(number)}) for number in range(6)]
    first = opened(made, id="again1")
    first.write(rows[:3])
    first.skip_rejected(1)
    first.write(rows[3:5])
    first.close("running")
    assert first.acknowledged() == 6
    again = opened(made, id="again2")
    again.write(rows[:3])
    again.write([lost])
    again.write(rows[3:5])
    again.write(rows[5:])
    again.close("finished")
    assert [row["x"] for row in wandb_rows(tmp_path)] == [0, 1, 2, 3, 4, 5]

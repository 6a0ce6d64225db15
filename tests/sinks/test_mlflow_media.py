"""Media in MLflow, verified with MlflowClient on an SQLite file and on a real server."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image as PillowImage

from metricbus import BackendUnavailableError, RecordsRejectedError, ScalarRow
from metricbus._common.media_records import (
    MEDIA_RECORD_TYPES,
    AudioRecord,
    Box,
    Cell,
    ChartRecord,
    FileRecord,
    HistogramRecord,
    ImageCell,
    ImageRecord,
    MediumRecord,
    TableRecord,
    TextRecord,
    VideoRecord,
    decode_rows,
    encode_rows,
)
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.media_files import MediaWriter, make_file_ref, safe_name
from metricbus._journal.run import Run, RunFolder, create_run
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.errors import MediaError
from metricbus.sinks.mlflow import media
from metricbus.sinks.mlflow.metric_names import image_key
from metricbus.sinks.mlflow.sink import MlflowOptions, MlflowSink
from metricbus.sinks.mlflow.store import upload
from metricbus.sinks.mlflow.tags import MEDIUM_NAME_TAG

AT: dict[str, Any] = {"epoch": 0, "time": 1_700_000_000_000_000_000}
ODD_NAMES = [
    "../../up",
    "a/b",
    "a~b",
    "a_b",
    "🦆",
    "long" * 200,
    "=cmd()",
    "a%b",
    "a+b",
    ".",
    "A b",
]


class Backend:
    """A run with media, an open sink, and access to what MLflow has stored."""

    def __init__(self, root: Path, uri: str, experiment: str) -> None:
        self.folder: RunFolder
        self.run: Run
        self.folder, self.run = create_run(root, id="r", name="r", config={})
        self.uri, self.experiment = uri, experiment
        self.media = MediaWriter(self.folder.path, "s")
        self.client = MlflowClient(uri)
        self.sink = self.open()

    def open(self) -> MlflowSink:
        sink = MlflowSink(self.uri, MlflowOptions(experiment=self.experiment))
        sink.open(self.run, self.folder.path, {})
        self.id = sink._run_id
        return sink

    def write(self, *records: Any) -> None:
        self.sink.write(records)
        self.sink.flush()

    def artifacts(self, path: str = "") -> list[str]:
        """Return the paths of all artifacts under the path."""
        paths = []
        for info in self.client.list_artifacts(self.id, path or None):
            paths += self.artifacts(info.path) if info.is_dir else [info.path]
        return sorted(paths)

    def read(self, path: str) -> bytes:
        return Path(self.client.download_artifacts(self.id, path)).read_bytes()

    def only(self, folder: str, ending: str) -> str:
        (path,) = [path for path in self.artifacts(folder) if path.endswith(ending)]
        return path

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.client.get_run(self.id).data.tags)

    def load(self, path: str) -> list[list[Any]]:
        """Return the columns and rows of a table that MLflow loads with pandas."""
        experiment = self.client.get_run(self.id).info.experiment_id
        with pytest.MonkeyPatch.context() as patch:
            # load_table searches there, whatever the client's URI
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            table = self.client.load_table(experiment, path, [self.id])
        return [[*table.columns], *table.to_numpy().tolist()]

    def history(self, key: str) -> list[tuple[int, int, float]]:
        metrics = self.client.get_metric_history(self.id, key)
        return [(metric.step, metric.timestamp, metric.value) for metric in metrics]

    # Records

    def image(self, name: str = "samples", step: int = 3, **fields: Any) -> ImageRecord:
        ref = self.media.save("image", name, step, ".png", png(step))
        size: dict[str, Any] = {"width": 6, "height": 4, "channels": 3}
        return ImageRecord(name=name, step=step, file=ref, **AT, **size, **fields)

    def histogram(self, name: str = "weights", step: int = 3, **fields: Any) -> HistogramRecord:
        values = [0.1, 0.1 + 0.2, 1 / 3, 1e300]
        bins: dict[str, Any] = {"counts": [1, 0, 2], "edges": values, "count": 3}
        return HistogramRecord(name=name, step=step, **AT, **(bins | fields))

    def table(
        self,
        rows: Sequence[Sequence[Cell]],
        name: str = "errors",
        table: str = "3-s.1",
        part: int = 0,
    ) -> TableRecord:
        ref = self.media.save("table", name, 3, ".jsonl", encode_rows(rows))
        columns = [f"c{i}" for i in range(len(rows[0]))]
        fields: dict[str, Any] = {"table": table, "part": part, "first_row": 0, "rows": len(rows)}
        return TableRecord(name=name, step=3, columns=columns, file=ref, **fields, **AT)

    def text(self, text: str = "# Hello\n", name: str = "notes", step: int = 3) -> TextRecord:
        ref = self.media.save("text", name, step, ".md", text.encode())
        return TextRecord(name=name, step=step, file=ref, length=len(text), start=text[:5], **AT)

    def audio(self, name: str = "voice", **fields: Any) -> AudioRecord:
        ref = self.media.save("audio", name, 3, ".wav", b"RIFF" + bytes(range(256)))
        info: dict[str, Any] = {"format": "wav", "sample_rate": 8, "channels": 1, "frames": 9}
        return AudioRecord(name=name, step=3, file=ref, **info, **AT, **fields)

    def video(self, name: str = "run", **fields: Any) -> VideoRecord:
        ref = self.media.save("video", name, 3, ".gif", b"GIF89a")
        info: dict[str, Any] = {"format": "gif", "fps": 5.0, "frames": 2, "width": 2, "height": 2}
        return VideoRecord(name=name, step=3, file=ref, **info, **AT, **fields)

    def chart(self, name: str = "curve") -> ChartRecord:
        rows: list[list[Cell]] = [[0, 0.5], [1, math.inf]]
        return ChartRecord(
            name=name,
            step=3,
            chart="line",
            x_column="x",
            y_columns=["y"],
            title="A curve",
            columns=["x", "y"],
            rows=2,
            data=self.media.save("chart", name, 3, ".jsonl", encode_rows(rows)),
            picture=self.media.save("chart", name, 3, ".png", png(9)),
            width=6,
            height=4,
            **AT,
        )

    def file(self, name: str = "model", origin: str = "/tmp/model.pt") -> FileRecord:
        ref = self.media.save("file", name, 3, ".pt", b"weights")
        return FileRecord(name=name, step=3, file=ref, origin=origin, copied=True, **AT)

    def picture(self, seed: int = 1, **fields: Any) -> ImageCell:
        return ImageCell(self.media.save("table", "p", 3, ".png", png(seed)), 6, 4, 3, **fields)

    def all(self, name: str = "all") -> list[MediumRecord]:
        rows: list[list[Cell]] = [[1, self.picture()], [math.nan, self.picture(2)]]
        masks = {"m": self.media.save("image", "m", 3, ".png", png(4))}
        annotated = self.media.save("image", "a", 3, ".png", png(5))
        return [
            self.histogram(name),
            self.image(name, annotated=annotated, masks=masks),
            self.table(rows, name),
            self.text(name=name),
            self.audio(name, caption="a"),
            self.video(name, caption="v"),
            self.chart(name),
            self.file(name),
        ]


@pytest.fixture
def backend(database: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Backend:
    return Backend(tmp_path, f"sqlite:///{database}", request.node.name)


@pytest.fixture
def server(mlflow_server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Backend:
    return Backend(tmp_path, mlflow_server, request.node.name)


def png(seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    content = io.BytesIO()
    PillowImage.fromarray(pixels).convert(mode).save(content, "PNG")
    return content.getvalue()


def test_accepts_every_medium() -> None:
    assert set(MEDIA_RECORD_TYPES) <= set(MlflowSink.kinds)


# Histograms


def test_histogram_file_has_exact_values(backend: Backend) -> None:
    totals: dict[str, Any] = {"minimum": 0.1, "maximum": 1e300, "mean": 1 / 3, "std": 0.7}
    totals |= {"sum": 1.0, "sum_squares": 2.0, "nan": 1, "infinite": 2, "minus_infinite": 3}
    record = backend.histogram(**totals)
    backend.write(record)
    content = json.loads(backend.read(backend.only("histograms", ".json")))
    assert content.items() >= {"name": "weights", "step": 3, "count": 3, **totals}.items()
    assert (content["counts"], content["edges"]) == (record.counts, record.edges)


def test_quantiles_of_a_histogram_are_metrics(backend: Backend) -> None:
    record = backend.histogram(minimum=0.1, maximum=2.0, mean=0.4)
    backend.write(record)
    expected = {"min": 0.1, "max": 2.0, "mean": 0.4}
    expected |= {f"p{q}": record.quantile(q / 100) or 0.0 for q in (25, 50, 75)}
    for statistic, value in expected.items():
        assert backend.history(f"weights/histogram/{statistic}") == [(3, 1_700_000_000_000, value)]


def test_empty_histogram_has_no_quantiles(backend: Backend) -> None:
    backend.write(backend.histogram(counts=[0], edges=[0.0, 1.0], count=0, nan=4))
    assert backend.client.get_run(backend.id).data.metrics == {}
    assert len(backend.artifacts("histograms")) == 1


def test_scalars_and_quantiles_keep_their_order_in_one_request(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    monkeypatch.setattr(
        backend.sink._client,
        "log_batch",
        lambda _, metrics=(), **fields: batches.append([metric.key for metric in metrics]),
    )
    row = ScalarRow(step=1, values={"a": 1.0}, **AT)
    last = ScalarRow(step=1, values={"z": 1.0}, **AT)
    backend.write(row, backend.histogram("h", minimum=0.0), last)
    quantiles = [f"h/histogram/{statistic}" for statistic in ("min", "p25", "p50", "p75")]
    assert batches == [["a", *quantiles, "z"]]


# Images


def test_image_path_is_the_one_that_mlflows_ui_expects(backend: Backend) -> None:
    record = backend.image("train/samples")
    backend.write(record)
    picture, thumbnail = sorted(backend.artifacts("images"), key=len)
    key, *rest = picture.removeprefix("images/").removesuffix(".png").split("+")
    assert key == "train~samples"
    assert rest[:4] == ["step", "3", "timestamp", "1700000000000"]
    assert thumbnail == picture.removesuffix(".png") + "+compressed.webp"
    assert backend.tags["mlflow.loggedImages"] == "True"


def test_image_has_the_same_layout_as_with_log_image(backend: Backend) -> None:
    backend.write(backend.image("samples", 7))
    ours = backend.artifacts("images")
    tags = backend.tags.keys()
    theirs = backend.client.create_run(backend.client.get_run(backend.id).info.experiment_id)
    image = PillowImage.open(io.BytesIO(png(7)))
    stamp = AT["time"] // 1_000_000
    backend.client.log_image(theirs.info.run_id, image, key="samples", step=7, timestamp=stamp)
    expected = [file.path for file in backend.client.list_artifacts(theirs.info.run_id, "images")]

    def without_id(paths: list[str]) -> list[str]:
        return sorted("+".join([*p.split("+")[:5], *p.split("+")[6:]]) for p in paths)

    assert without_id([p.replace(".png", "+.png") for p in ours]) == without_id(
        [p.replace(".png", "+.png") for p in expected]
    )
    assert backend.client.get_run(theirs.info.run_id).data.tags.keys() - {"mlflow.runName"} <= tags


def test_png_of_an_image_is_unchanged(backend: Backend) -> None:
    backend.write(backend.image())
    assert backend.read(backend.only("images", ".png")) == png(3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_images_of_all_modes_have_a_thumbnail(backend: Backend, mode: str) -> None:
    ref = backend.media.save("image", "x", 3, ".png", png(3, mode))
    backend.write(ImageRecord(name="x", step=3, file=ref, width=6, height=4, channels=1, **AT))
    with PillowImage.open(io.BytesIO(backend.read(backend.only("images", ".webp")))) as image:
        assert image.size == (256, 170)


def test_without_pillow_logs_only_png(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    records = backend.image(), backend.table([[backend.picture()]])
    monkeypatch.setitem(sys.modules, "PIL", None)
    backend.write(*records)
    assert not [path for path in backend.artifacts() if path.endswith(".webp")]
    ((cell,),) = json.loads(backend.read(backend.only("tables", ".json")))["data"]
    assert cell["compressed_filepath"] == cell["filepath"] in backend.artifacts("table_images")


def test_image_with_boxes_is_drawn_and_the_original_is_kept(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    annotated = backend.media.save("image", "samples", 3, ".png", png(10))
    mask = backend.media.save("image", "samples", 3, ".png", png(11))
    for step in (3, 4):
        backend.write(
            backend.image(
                step=step,
                caption="a seven",
                boxes=[Box(1.0, 2.0, 3.0, 4.0, label=7, score=0.5)],
                masks={"../truth": mask},
                class_labels={7: "seven"},
                annotated=annotated,
            )
        )
    (path,) = [p for p in backend.artifacts("images") if "+step+3+" in p and p.endswith(".png")]
    assert backend.read(path) == png(10)
    (details,) = [p for p in backend.artifacts("image_details") if "/3-" in p and "json" in p]
    content = json.loads(backend.read(details))
    assert (content["caption"], content["class_labels"]) == ("a seven", {"7": "seven"})
    box = {"left": 1.0, "top": 2.0, "right": 3.0, "bottom": 4.0, "label": 7, "score": 0.5}
    assert content["boxes"] == [box]
    assert content["image"] == path
    assert backend.read(content["original"]) == png(3)
    assert backend.read(content["masks"]["../truth"]) == png(11)
    assert caplog.text.count("logging the image with these drawn onto it") == 1


def test_image_of_a_series_with_its_own_axis_uses_the_axis_value(backend: Backend) -> None:
    backend.write(backend.image(axis="epoch", at=12))
    assert "+step+12+" in backend.only("images", ".png")


# Tables


def test_mlflow_loads_a_table(backend: Backend) -> None:
    backend.write(backend.table([[1, 0.1 + 0.2, "x"], [2**63 - 1, -1e300, "ü🦆\n"]]))
    path = backend.only("tables", "part-00000.json")
    assert backend.load(path) == [
        ["c0", "c1", "c2"],
        [1, 0.1 + 0.2, "x"],
        [2**63 - 1, -1e300, "ü🦆\n"],
    ]


def test_table_file_keeps_the_type_of_each_cell(backend: Backend) -> None:
    rows: list[list[Cell]] = [[None, True, "007", -0.0, 2**53 + 1], [1, 2.0, "NaN", "", 0.1]]
    backend.write(backend.table(rows))
    content = json.loads(backend.read(backend.only("tables", ".json")))
    assert repr(content) == repr({"columns": [f"c{i}" for i in range(5)], "data": rows})


def test_mlflow_loads_nonfinite_numbers_of_a_table(backend: Backend) -> None:
    backend.write(backend.table([[math.nan], [math.inf], [-math.inf], [1.5]]))
    assert (
        repr(backend.load(backend.only("tables", ".json"))[1:]) == "[[nan], [inf], [-inf], [1.5]]"
    )


def test_a_second_file_distinguishes_nonfinite_numbers_from_strings(backend: Backend) -> None:
    rows: list[list[Cell]] = [[math.nan, "NaN"], ["Infinity", -math.inf]]
    backend.write(backend.table(rows))
    assert repr(decode_rows(backend.read(backend.only("tables", ".exact.jsonl")))) == repr(rows)


def test_table_parts_are_uploaded_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def counting(client: Any, run_id: str, file: Path, folder: str) -> None:
        sent.append(file.stat().st_size)
        upload(client, run_id, file, folder)

    monkeypatch.setattr(media, "upload", counting)
    parts = [backend.table([[i] for i in range(100)], part=part) for part in range(8)]
    for part in parts:
        backend.write(part)
    assert sent == [sent[0]] * 8
    listed = json.loads(backend.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == backend.artifacts("tables")
    assert [entry["type"] for entry in listed] == ["table"] * 8
    assert all(len(backend.load(entry["path"])) == 101 for entry in listed)


def test_images_in_a_table_have_the_same_layout_as_with_log_table(backend: Backend) -> None:
    rows: list[list[Cell]] = [[0, backend.picture(1)], [1, backend.picture(2, caption="two")]]
    backend.write(backend.table(rows))
    first, second = (row[1] for row in backend.load(backend.only("tables", ".json"))[1:])
    assert first.keys() == {"type", "filepath", "compressed_filepath"}
    assert (first["type"], second["caption"]) == ("image", "two")
    for cell, seed in ((first, 1), (second, 2)):
        assert cell["filepath"].startswith("table_images/tables/errors-")
        assert backend.read(cell["filepath"]) == png(seed)
        assert cell["compressed_filepath"] in backend.artifacts("table_images")


def test_tables_listed_by_other_code_stay_listed(backend: Backend) -> None:
    backend.client.log_table(backend.id, {"a": [1]}, "theirs.json")
    backend.write(backend.table([[1]]))
    backend.client.log_table(backend.id, {"a": [1]}, "later.json")
    backend.write(backend.table([[1]], table="other"))
    listed = [entry["path"] for entry in json.loads(backend.tags["mlflow.loggedArtifacts"])]
    assert listed[0] == "theirs.json"
    assert listed[2] == "later.json"
    assert len(listed) == 4


def test_a_full_table_list_keeps_first_parts_and_warns_once(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [backend.table([[i]], table="big", part=i) for i in range(120)]
    backend.write(*parts)
    small = [backend.table([[i]], table=f"small-{i}") for i in range(20)]
    backend.write(*small)
    text = backend.tags["mlflow.loggedArtifacts"]
    assert len(text) <= 8000
    listed = [entry["path"] for entry in json.loads(text)]
    assert sum("/small-" in path for path in listed) == 20
    assert listed[0].endswith("/big/part-00000.json")
    assert caplog.text.count("mlflow does not support this many tables") == 1
    assert len(backend.artifacts("tables")) == 140


# Other media


def test_text_is_a_markdown_file(backend: Backend) -> None:
    backend.write(backend.text("# Ünder 🦆\n\n* a\n"))
    assert backend.read(backend.only("texts", ".md")).decode() == "# Ünder 🦆\n\n* a\n"


def test_audio_is_a_file_with_the_same_bytes(backend: Backend) -> None:
    backend.write(backend.audio())
    (path,) = backend.artifacts("audio")
    assert (Path(path).suffix, backend.read(path)) == (".wav", b"RIFF" + bytes(range(256)))


def test_a_caption_is_in_a_details_file(backend: Backend) -> None:
    backend.write(backend.audio(caption="hello"), backend.video(caption="jump"))
    audio = json.loads(backend.read(backend.only("audio", ".json")))
    video = json.loads(backend.read(backend.only("videos", ".json")))
    assert (audio["caption"], audio["sample_rate"], video["caption"]) == ("hello", 8, "jump")
    assert (audio["file"], video["file"]) == (
        backend.only("audio", ".wav"),
        backend.only("videos", ".gif"),
    )


def test_chart_is_an_image_and_its_data(backend: Backend) -> None:
    backend.write(backend.chart())
    exact, data, details, picture = backend.artifacts("charts")
    assert backend.read(picture) == png(9)
    rows = [[0, 0.5], [1, "Infinity"]]
    assert json.loads(backend.read(data)) == {"columns": ["x", "y"], "data": rows}
    assert decode_rows(backend.read(exact)) == [[0, 0.5], [1, math.inf]]
    content = json.loads(backend.read(details))
    assert (content["title"], content["y_columns"], content["data"]) == ("A curve", ["y"], data)


def test_a_file_keeps_its_name(backend: Backend) -> None:
    backend.write(backend.file(origin="/data/my model.pt"), backend.file(origin="/data/.env"))
    names = {Path(path).name for path in backend.artifacts("files")}
    assert names == {"_.env", "my_model.pt"}
    assert {backend.read(path) for path in backend.artifacts("files")} == {b"weights"}


def test_uncopied_file_is_uploaded_from_its_original_path(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.bin"
    file.write_bytes(b"content")
    record = FileRecord(
        name="f", step=3, file=make_file_ref(file, str(file)), origin=str(file), copied=False, **AT
    )
    backend.write(record)
    assert backend.read(backend.only("files", "elsewhere.bin")) == b"content"


# Names and repeated delivery


def test_repeated_delivery_duplicates_nothing(backend: Backend) -> None:
    records = backend.all()
    backend.write(*records)
    once = {path: backend.read(path) for path in backend.artifacts()}
    tags = backend.tags
    backend.sink = backend.open()
    for record in records:
        backend.write(record)
    assert {path: backend.read(path) for path in backend.artifacts()} == once
    assert backend.tags == tags
    assert len(backend.history("all/histogram/p50")) == 1


def test_odd_names_have_distinct_paths_inside_the_folder(backend: Backend) -> None:
    for name in ODD_NAMES:
        records = [backend.image(name), backend.histogram(name), backend.text(name=name)]
        backend.write(*records, backend.table([[1]], name), backend.audio(name), backend.file(name))
    for kind in ("histograms", "texts", "tables", "audio", "files"):
        assert len(backend.artifacts(kind)) == len(ODD_NAMES)
        assert len({path.split("/")[1] for path in backend.artifacts(kind)}) == len(ODD_NAMES)
    keys = {path.removeprefix("images/").split("+")[0] for path in backend.artifacts("images")}
    assert len(keys) == len(ODD_NAMES)
    assert len(backend.artifacts("images")) == 2 * len(ODD_NAMES)


def test_original_names_are_stored_in_tags(backend: Backend) -> None:
    for name in ODD_NAMES:
        backend.write(backend.image(name), backend.text(name=name))
    tags = backend.tags
    for name in ODD_NAMES:
        assert tags.get(MEDIUM_NAME_TAG + image_key(name), image_key(name)) == name
        folder = safe_name(name)
        assert tags.get(MEDIUM_NAME_TAG + folder, folder[:-9]) == name


def test_an_unsafe_table_id_does_not_leave_the_folder(backend: Backend) -> None:
    backend.write(backend.table([[1]], table="../../../up"), backend.table([[2]], table=""))
    assert [path.split("/")[0] for path in backend.artifacts()] == ["tables"] * 2


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=150)


@given(
    st.lists(NAMES | st.sampled_from([*ODD_NAMES, "a_b-0123abcd", "a/_/b", "a//b"]), unique=True)
)
def test_every_name_has_a_distinct_image_key(names: list[str]) -> None:
    keys = [image_key(name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and len(key) <= 100 and not {*key} & {*"+%#~"} for key in keys)


def test_a_name_that_looks_like_a_hashed_key_gets_another_key() -> None:
    assert image_key(image_key("a@b")) != image_key("a@b")


# Errors


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_nothing_is_sent_if_a_file_is_missing_or_changed(backend: Backend, damage: str) -> None:
    good, bad = backend.text(), backend.image()
    path = backend.folder.path / bad.file.path
    path.unlink() if damage == "missing" else path.write_bytes(b"other")
    with pytest.raises(MediaError, match=damage):
        backend.write(good, ScalarRow(step=1, values={"a": 1.0}, **AT), bad)
    assert backend.artifacts() == []
    assert backend.client.get_run(backend.id).data.metrics == {}


def test_nothing_is_sent_if_an_image_of_a_table_is_missing(backend: Backend) -> None:
    picture = backend.picture()
    record = backend.table([[picture]])
    (backend.folder.path / picture.file.path).unlink()
    with pytest.raises(MediaError, match="missing"):
        backend.write(backend.text(), record)
    assert backend.artifacts() == []


def test_media_are_rejected_without_an_artifact_folder_but_scalars_are_delivered(
    tmp_path: Path, database: Path
) -> None:
    experiment = "no folder"
    blocked = tmp_path / "a-file"
    blocked.write_text("in the way")
    uri = f"sqlite:///{database}"
    MlflowClient(uri).create_experiment(experiment, (blocked / "artifacts").as_uri())
    backend = Backend(tmp_path / "runs", uri, experiment)
    writer = SegmentWriter(backend.folder.journal, backend.run.id)
    for step in range(5):
        writer.append([ScalarRow(step=step, values={"a": 1.0}, **AT), backend.text(step=step)])
    writer.close()
    consumer = Consumer(
        backend.folder, spec_of(parse_sink(f"mlflow:{database}?experiment=no folder"))
    )
    consumer.end("finished")
    consumer.run()
    assert (consumer.tally().delivered, consumer.tally().rejected) == (5, 5)
    assert "artifact folder must exist and be writable" in str(consumer.tally().error)
    assert len(backend.history("a")) == 5


def test_retry_uploads_what_is_missing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []

    def failing_once(client: Any, run_id: str, file: Path, folder: str) -> None:
        attempts.append(folder.split("/", maxsplit=1)[0])
        if attempts == ["texts", "audio"]:
            raise BackendUnavailableError("not now")
        upload(client, run_id, file, folder)

    monkeypatch.setattr(media, "upload", failing_once)
    records = backend.text(), backend.audio(), backend.video()
    with pytest.raises(BackendUnavailableError):
        backend.write(*records)
    backend.write(*records)
    assert attempts == ["texts", "audio", "audio", "videos"]
    assert [path.split("/")[0] for path in backend.artifacts()] == ["audio", "texts", "videos"]


def test_large_file_has_a_longer_timeout(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[str] = []
    monkeypatch.setattr(
        media,
        "upload",
        lambda *_: timeouts.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]),
    )
    backend.write(backend.text("small"), backend.text("x" * 5_000_000))
    assert timeouts == ["10", "15"]


class FailingClient:
    """An MLflow client whose uploads raise `error`."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def log_artifact(self, *_: Any) -> None:
        raise self._error


def test_a_full_disk_is_a_temporary_failure(tmp_path: Path) -> None:
    client: Any = FailingClient(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space") as caught:
        upload(client, "r", tmp_path / "x", "texts")
    assert not isinstance(caught.value, RecordsRejectedError)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR])
def test_an_unwritable_folder_is_a_permanent_failure(tmp_path: Path, number: int) -> None:
    client: Any = FailingClient(OSError(number, "no"))
    with pytest.raises(RecordsRejectedError, match="writable"):
        upload(client, "r", tmp_path / "x", "texts")


# A server


def test_all_media_reach_a_server(server: Backend) -> None:
    records = server.all("odd/🦆 name")
    server.write(*records)
    assert server.read(server.only("images", ".png")) == png(5)
    assert server.read(server.only("audio", ".wav")) == b"RIFF" + bytes(range(256))
    assert server.read(server.only("texts", ".md")) == b"# Hello\n"
    assert server.load(server.only("tables", "part-00000.json"))[1][0] == 1
    assert json.loads(server.read(server.only("histograms", ".json")))["counts"] == [1, 0, 2]
    once = server.artifacts()
    server.sink = server.open()
    server.write(*records)
    assert server.artifacts() == once


@pytest.fixture
def fake_answer(server: Backend) -> Iterator[Callable[[int, bytes], Backend]]:
    """Answer each upload with a given status and body, in place of the server."""
    answer: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answer[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with closing(_Server(("127.0.0.1", 0), Handler)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()

        def start(status: int, body: bytes) -> Backend:
            answer[:] = [(status, body)]
            run = server.client.get_run(server.id)
            path = unquote(urlparse(run.info.artifact_uri).path)
            host = f"http://127.0.0.1:{http.server_port}/api/2.0/mlflow-artifacts/artifacts"
            from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
            from mlflow.tracking._tracking_service import utils

            utils._artifact_repos_cache[server.id] = HttpArtifactRepository(  # type: ignore[no-untyped-call]
                host + path
            )
            return server

        yield start
        http.shutdown()


class _Server(HTTPServer):
    def close(self) -> None:
        self.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE"}'),
        (413, b"too large"),
        (405, b"no PUT here"),
    ],
)
def test_an_upload_that_a_server_refuses_permanently_is_rejected(
    fake_answer: Callable[[int, bytes], Backend], status: int, body: bytes
) -> None:
    backend = fake_answer(status, body)
    with pytest.raises(RecordsRejectedError, match=str(status)):
        backend.write(backend.text())


@pytest.mark.parametrize("status", [401, 404, 429, 500, 502, 503])
def test_an_upload_that_a_server_may_accept_later_is_retried(
    fake_answer: Callable[[int, bytes], Backend], status: int
) -> None:
    backend = fake_answer(status, b"an error page of a proxy")
    with pytest.raises(BackendUnavailableError, match=str(status)) as caught:
        backend.write(backend.text())
    assert caught.value.retry_after == 7

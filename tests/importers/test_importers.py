"""`metricbus import`: TensorBoard event files and CSV files."""

from __future__ import annotations

import csv
import io
import json
import math
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image as Pil
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner, Result

import metricbus
from metricbus import ConfigError, Histogram, History, Image, MetricBus, Text, Video
from metricbus._cli.app import app
from metricbus._common.media_records import (
    AudioRecord,
    HistogramRecord,
    ImageRecord,
    TextRecord,
    VideoRecord,
)
from metricbus._common.records import Rewind, ScalarRow
from metricbus._importers import ImportResult, ImportTarget, import_csv, import_tensorboard
from metricbus._importers.cells import parse_number, parse_step, parse_time
from metricbus._journal.segment_reader import JournalReader
from metricbus.sinks.tensorboard.event_file import encode_tfrecord
from tests.helpers.limits import HANG_SECS

TIME = 1_700_000_000


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


@pytest.fixture
def target(tmp_path: Path) -> ImportTarget:
    return ImportTarget(tmp_path / "runs", "imported", id="i")


def read(result: ImportResult) -> History:
    return metricbus.read(result.folder)


def only(results: list[ImportResult]) -> ImportResult:
    (result,) = results
    return result


def points(history: History, name: str) -> list[tuple[int, float]]:
    series = history.series(name)
    return list(zip(series.step.tolist(), series.value.tolist(), strict=True))


# TensorBoard


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def writer(logs: Path) -> Iterator[SummaryWriter]:
    with SummaryWriter(str(logs)) as writer:
        yield writer


def imported(writer: Any, logs: Path, target: ImportTarget) -> History:
    writer.flush()
    result = only(import_tensorboard(logs, target))
    assert result.left_out == []
    return read(result)


def write_events(folder: Path, *events: Event, name: str = "events.out.tfevents.1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"".join(encode_tfrecord(event.SerializeToString()) for event in events))
    return path


def scalar(tag: str, value: float, step: int, time: float = TIME) -> Event:
    return Event(
        wall_time=time,
        step=step,
        summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]),
    )


@pytest.mark.parametrize("new_style", [False, True])
def test_scalars_of_both_forms_keep_their_steps_and_times(
    writer: Any, logs: Path, target: ImportTarget, new_style: bool
) -> None:
    for step in (3, 1, 2):
        writer.add_scalar("loss", step / 4, step, walltime=TIME + step, new_style=new_style)
    writer.add_scalar("loss", math.nan, 4, walltime=TIME + 4, new_style=new_style)
    series = imported(writer, logs, target).series("loss")
    assert series.step.tolist() == [3, 1, 2, 4]
    assert series.time.tolist() == [(TIME + step) * 10**9 for step in (3, 1, 2, 4)]
    np.testing.assert_array_equal(series.value, [0.75, 0.25, 0.5, math.nan])


def test_the_run_is_finished_and_names_its_source(
    writer: Any, logs: Path, target: ImportTarget
) -> None:
    for step in range(2):
        writer.add_scalar("loss", 0.5, step, walltime=TIME + step)
    run = imported(writer, logs, target).run
    assert (run.id, run.name, run.status) == ("i", "imported", "finished")
    assert (run.started, run.ended) == (TIME * 10**9, (TIME + 1) * 10**9)
    assert run.notes == f"imported from {logs}"


def test_histograms_keep_their_bins_and_statistics(
    writer: Any, logs: Path, target: ImportTarget
) -> None:
    values = np.random.default_rng(0).normal(size=1000)
    writer.add_histogram("weights", values, 7, bins="auto")
    (record,) = imported(writer, logs, target).media("weights")
    assert isinstance(record, HistogramRecord)
    counts, _ = np.histogram(values, bins=record.edges)
    assert record.counts == counts.tolist()
    assert (record.step, record.count) == (7, 1000)
    assert record.minimum == pytest.approx(values.min())
    assert record.maximum == pytest.approx(values.max())
    assert record.mean == pytest.approx(values.mean())
    assert record.std == pytest.approx(values.std())


@pytest.mark.parametrize(
    ("limits", "buckets", "edges", "counts"),
    [
        ([0.0, 1.0, 2.0], [0, 3, 4], [0.0, 1.0, 2.0], [3, 4]),
        ([1.0, 2.0], [3, 4], [0.0, 1.0, 2.0], [3, 4]),
        ([1.0, 1.7e308], [3, 4], [0.0, 1.0, 2.0], [3, 4]),  # TensorFlow's limit of the last bucket
        ([], [], [], []),
    ],
)
def test_old_histograms_of_all_writers_are_imported(
    logs: Path,
    target: ImportTarget,
    limits: list[float],
    buckets: list[float],
    edges: list[float],
    counts: list[int],
) -> None:
    histo = HistogramProto(min=0, max=2, num=7, sum=7, bucket_limit=limits, bucket=buckets)
    value = Summary.Value(tag="h", histo=histo)
    write_events(logs, Event(step=1, wall_time=TIME, summary=Summary(value=[value])))
    (record,) = read(only(import_tensorboard(logs, target))).media("h")
    assert isinstance(record, HistogramRecord)
    assert (record.edges, record.counts) == (edges, counts)


def tensors(tag: str, metadata: Any, *tensors: TensorProto) -> list[Event]:
    """Return events like those of TensorFlow: only the first value names its plugin."""
    return [
        Event(
            step=step,
            wall_time=TIME,
            summary=Summary(
                value=[Summary.Value(tag=tag, metadata=None if step else metadata, tensor=tensor)]
            ),
        )
        for step, tensor in enumerate(tensors)
    ]


def test_new_histograms_with_gaps_or_equal_values_are_imported(
    logs: Path, target: ImportTarget
) -> None:
    metadata = histogram_metadata.create_summary_metadata(display_name="", description="")
    with_gap = make_tensor_proto(np.array([[0, 1, 2], [2, 3, 4]], dtype=np.float64))
    equal_values = make_tensor_proto(np.array([[5, 5, 0], [5, 5, 9]], dtype=np.float64))
    write_events(logs, *tensors("h", metadata, with_gap, equal_values))
    first, second = read(only(import_tensorboard(logs, target))).media("h")
    assert isinstance(first, HistogramRecord)
    assert (first.edges, first.counts) == ([0.0, 1.0, 2.0, 3.0], [2, 0, 4])
    assert isinstance(second, HistogramRecord)
    assert (second.counts, second.count) == ([9], 9)
    assert second.mean == 5


def test_images_keep_their_pixels(writer: Any, logs: Path, target: ImportTarget) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    writer.add_image("picture", pixels, 2)
    history = imported(writer, logs, target)
    (record,) = history.media("picture")
    assert isinstance(record, ImageRecord)
    assert (record.step, record.width, record.height, record.channels) == (2, 7, 5, 3)
    actual = np.asarray(Pil.open(io.BytesIO(history.files.read(record.file))))
    np.testing.assert_array_equal(actual, pixels.transpose(1, 2, 0))


def encoded(format: str, mode: str = "L") -> bytes:
    content = io.BytesIO()
    Pil.new(mode, (4, 3), 7).save(content, format)
    return content.getvalue()


def test_a_tensor_of_several_images_in_different_formats_is_imported(
    logs: Path, target: ImportTarget
) -> None:
    metadata = image_metadata.create_summary_metadata(display_name="", description="")
    contents = [b"4", b"3", encoded("png"), encoded("jpeg"), encoded("png", "P"), encoded("gif")]
    write_events(logs, *tensors("p", metadata, make_tensor_proto(contents)))
    records = read(only(import_tensorboard(logs, target))).media()
    assert [record.name for record in records] == ["p/0", "p/1", "p/2", "p/3"]
    assert [type(record) for record in records] == [*[ImageRecord] * 3, VideoRecord]
    for record in records:
        assert isinstance(record, ImageRecord | VideoRecord)
        assert (record.width, record.height) == (4, 3)


def test_text_and_audio_are_imported(writer: Any, logs: Path, target: ImportTarget) -> None:
    writer.add_text("notes", "**bold** text", 1)
    writer.add_audio("sound", np.zeros((1, 800), dtype=np.float32), 2, sample_rate=8000)
    history = imported(writer, logs, target)
    text, sound = history.media()
    assert isinstance(text, TextRecord)
    assert (text.name, text.step) == ("notes/text_summary", 1)
    assert history.files.text(text.file) == "**bold** text"
    assert isinstance(sound, AudioRecord)
    assert (sound.sample_rate, sound.channels, sound.frames) == (8000, 1, 800)
    with wave.open(io.BytesIO(history.files.read(sound.file))) as clip:
        assert clip.getnframes() == 800


def test_hyperparameters_become_the_config(writer: Any, logs: Path, target: ImportTarget) -> None:
    hparams = {"lr": 0.1, "optimizer": "adam", "amp": True}
    writer.add_hparams(hparams, {"hparam/accuracy": 0.9}, run_name="trial")
    history = imported(writer, logs, target)
    assert history.run.config == hparams
    assert points(history, "trial/hparam/accuracy") == [(0, float(np.float32(0.9)))]


def test_data_without_an_equivalent_are_counted(
    writer: Any, logs: Path, target: ImportTarget
) -> None:
    writer.add_scalar("loss", 0.5, 0)
    writer.add_pr_curve("curve", np.array([0, 1, 1]), np.array([0.1, 0.5, 0.9]), 3)
    writer.add_scalar("late", 1.0, -5)
    writer.flush()
    result = only(import_tensorboard(logs, target))
    assert read(result).names() == ["loss"]
    assert result.left_out == [
        "values of plugin pr_curves: 1 (first: 'curve' at step 3)",
        "values at negative steps: 1 (first: 'late' at step -5)",
    ]


def test_folders_become_prefixes_and_are_merged_by_time(logs: Path, target: ImportTarget) -> None:
    for folder, offset in (("train", 0.0), ("val", 0.5), ("", 0.75)):
        events = [scalar("loss", step, step, TIME + step + offset) for step in range(3)]
        write_events(logs / folder, *events)
    history = read(only(import_tensorboard(logs, target)))
    assert history.names() == ["train/loss", "val/loss", "loss"]
    assert points(history, "val/loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    records = [row.record for row in JournalReader(history.folder / "journal").read()]
    names = [name for row in records if isinstance(row, ScalarRow) for name in row.values]
    assert names == ["train/loss", "val/loss", "loss"] * 3


def test_each_folder_can_become_a_run(logs: Path, tmp_path: Path) -> None:
    for folder in ("a/train", "b"):
        write_events(logs / folder, scalar("loss", 0.5, 1))
    result = command("tensorboard", logs, "--each", "--json", "--dir", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert [result["name"] for result in results] == ["a/train", "b"]
    for result in results:
        assert points(metricbus.read(result["folder"]), "loss") == [(1, 0.5)]


def test_files_of_a_folder_are_read_in_order(logs: Path, target: ImportTarget) -> None:
    write_events(logs, scalar("x", 2.0, 2), name="events.out.tfevents.2.host")
    write_events(logs, scalar("x", 1.0, 1), name="events.out.tfevents.1.host")
    assert points(read(only(import_tensorboard(logs, target))), "x") == [(1, 1.0), (2, 2.0)]


def test_a_restart_supersedes_later_steps(logs: Path, target: ImportTarget) -> None:
    with SummaryWriter(str(logs)) as first:
        for step in range(4):
            first.add_scalar("x", step, step, walltime=TIME)
    with SummaryWriter(str(logs), purge_step=2, filename_suffix=".b") as second:
        second.add_scalar("x", 20, 2)
    history = read(only(import_tensorboard(logs, target)))
    assert points(history, "x") == [(0, 0.0), (1, 1.0), (2, 20.0)]


def test_the_torn_end_of_a_file_is_reported(logs: Path, target: ImportTarget) -> None:
    path = write_events(logs, scalar("x", 1.0, 1), scalar("x", 2.0, 2))
    path.write_bytes(path.read_bytes()[:-3])
    result = only(import_tensorboard(path, target))
    assert points(read(result), "x") == [(1, 1.0)]
    (line,) = result.left_out
    assert line.startswith("bytes in the torn or damaged ends of files: ")


def test_the_output_of_the_tensorboard_sink_can_be_imported(
    tmp_path: Path, target: ImportTarget
) -> None:
    with MetricBus(id="r", sinks="tensorboard", dir=tmp_path, config={"lr": 0.5}) as bus:
        for step in range(3):
            bus.log({"a": step / 2, "b": step}, step=step)
        bus.log("h", Histogram(np.arange(100.0)), step=3)
        bus.log("p", Image(np.zeros((4, 4), dtype=np.uint8)), step=3)
        bus.log("video", Video(np.zeros((2, 4, 4), dtype=np.uint8)), step=3)
        bus.log("t", Text("text"), step=3)
        bus.config.update(lr=0.25, seed=1)
    original = metricbus.read(tmp_path / "r")
    imported_run = read(only(import_tensorboard(tmp_path / "r" / "tensorboard", target)))
    assert imported_run.run.config == original.run.config
    assert imported_run.names() == original.names()
    for name in original.names():
        assert points(imported_run, name) == points(original, name)
        np.testing.assert_allclose(
            imported_run.series(name).time, original.series(name).time, atol=1000
        )
    (old,), (new,) = original.media("h"), imported_run.media("h")
    assert isinstance(old, HistogramRecord)
    assert isinstance(new, HistogramRecord)
    assert (new.edges, new.counts, new.sum) == (old.edges, old.counts, old.sum)
    kinds = [type(record) for record in imported_run.media()]
    assert kinds == [type(record) for record in original.media()]


def test_an_imported_run_is_delivered_to_csv_and_mlflow(
    writer: Any, logs: Path, tmp_path: Path
) -> None:
    for step in range(20):
        writer.add_scalar("loss", 1 / (step + 1), step, walltime=TIME + step)
    writer.flush()
    root = tmp_path / "runs"
    result = command("tensorboard", logs, "--dir", root, "--id", "i", "--project", "old")
    assert result.exit_code == 0, result.output
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    counts = metricbus.deliver(root / "i", f"csv,mlflow+{uri}", timeout=HANG_SECS)
    assert [(sink.delivered, sink.pending) for sink in counts.values()] == [(20, 0), (20, 0)]
    expected = [(step, float(np.float32(1 / (step + 1)))) for step in range(20)]
    with open(root / "i" / "csv" / "metrics.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(int(line["step"]), float(line["value"])) for line in lines] == expected
    client = MlflowClient(uri)
    experiments = client.search_experiments(filter_string="name = 'old'")
    (run,) = client.search_runs([experiment.experiment_id for experiment in experiments])
    metrics = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in metrics) == expected
    assert run.info.status == "FINISHED"


def test_a_folder_without_event_files_fails(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = ((tmp_path / "empty", "No event files"), ("none", "does not exist"))
    for path, message in cases:
        result = command("tensorboard", path, "--dir", tmp_path / "runs")
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "runs").exists()


def test_event_files_without_values_create_no_run(logs: Path, tmp_path: Path) -> None:
    write_events(logs, Event(file_version="brain.Event:2"))
    result = command("tensorboard", logs, "--dir", tmp_path / "runs")
    assert result.exit_code == 2
    assert "Nothing to import" in result.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_import_without_tensorboard_fails_with_the_install_command(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricbus._common.optional_imports.find_spec", lambda name: None)
    result = command("tensorboard", logs)
    assert result.exit_code == 2
    assert "pip install 'metricbus[tensorboard]'" in result.stderr


# CSV


def from_csv(tmp_path: Path, target: ImportTarget, text: str, **options: Any) -> ImportResult:
    path = tmp_path / "given.csv"
    path.write_text(text, encoding="utf-8")
    return import_csv(path, target, **options)


def test_the_long_form_has_a_line_per_value(tmp_path: Path, target: ImportTarget) -> None:
    result = from_csv(
        tmp_path,
        target,
        "step,name,value,epoch,time\n"
        "0,loss,0.5,0,1700000000.123456789\n"
        "0,n,9007199254740993,0,1700000000.123456789\n"
        "1,loss,nan,1,2023-11-14T22:13:21Z\n",
    )
    history = read(result)
    assert (result.rows, result.values, result.left_out) == (2, 3, [])
    loss = history.series("loss")
    assert (loss.step.tolist(), loss.epoch.tolist()) == ([0, 1], [0, 1])
    assert loss.time.tolist() == [TIME * 10**9 + 123456789, (TIME + 1) * 10**9]
    np.testing.assert_array_equal(loss.value, [0.5, math.nan])
    assert history.series("n").value.tolist() == [2**53 + 1]


def test_the_wide_form_has_a_column_per_name(tmp_path: Path, target: ImportTarget) -> None:
    result = from_csv(tmp_path, target, "loss,it,acc\n0.5,10,1\n0.25,20,2\n", step="it")
    history = read(result)
    assert points(history, "loss") == [(10, 0.5), (20, 0.25)]
    assert points(history, "acc") == [(10, 1), (20, 2)]
    changed = (tmp_path / "given.csv").stat().st_mtime_ns
    assert history.series("acc").time.tolist() == [changed] * 2


def test_empty_cells_in_the_metrics_of_lightning_are_skipped(
    tmp_path: Path, target: ImportTarget
) -> None:
    result = from_csv(
        tmp_path,
        target,
        "epoch,step,train_loss,val_loss\n0,49,0.7,\n0,99,0.6,\n0,99,,0.65\n1,149,0.5,\n",
    )
    history = read(result)
    assert points(history, "train_loss") == [(49, 0.7), (99, 0.6), (149, 0.5)]
    assert points(history, "val_loss") == [(99, 0.65)]
    assert history.series("train_loss").epoch.tolist() == [0, 0, 1]
    assert result.left_out == ["empty cells: 4 (first: in line 2)"]


def test_cells_that_are_not_numbers_are_reported_with_their_line(
    tmp_path: Path, target: ImportTarget
) -> None:
    result = from_csv(
        tmp_path,
        target,
        "step,loss,model\n0,0.5,resnet\n1,n/a,resnet\nx,0.5,1\n-1,0.5,1\n2,1,2,3\n",
    )
    assert points(read(result), "loss") == [(0, 0.5), (2, 1.0)]
    assert result.left_out == [
        "cells of column 'model' that are not numbers: 2 (first: 'resnet' in line 2)",
        "cells of column 'loss' that are not numbers: 1 (first: 'n/a' in line 3)",
        "lines whose step is not a non-negative integer: 2 (first: 'x' in line 4)",
        "cells beyond the last column: 1 (first: in line 6)",
    ]


def test_the_long_form_reports_unknown_columns_and_empty_values(
    tmp_path: Path, target: ImportTarget
) -> None:
    result = from_csv(
        tmp_path, target, "step,name,value,host\n0,x,1,n7\n1,x,,n7\n2,x,abc,n7\n3,,1,n7\n"
    )
    assert points(read(result), "x") == [(0, 1)]
    assert result.left_out == [
        "unknown columns ('host'): 1 (first: in line 1)",
        "lines without a value: 1 (first: in line 3)",
        "values that are not numbers: 1 (first: 'abc' in line 4)",
        "values with invalid metric names: 1 (first: '' in line 5)",
    ]


def test_the_output_of_the_csv_sink_can_be_imported(tmp_path: Path, target: ImportTarget) -> None:
    with MetricBus(id="r", sinks="csv", dir=tmp_path) as bus:
        for step in range(6):
            bus.log({"x": step / 3, "=n, 'quoted'": 2**62 + step, "'": -0.0}, step=step)
        bus.rewind(3)
        bus.log({"x": math.inf}, step=4)
        bus.log("t", Text("text"))
    original = metricbus.read(tmp_path / "r")
    result = import_csv(tmp_path / "r" / "csv" / "metrics.csv", target)
    imported_run = read(result)
    assert result.left_out == ["lines of kind 'text': 1 (first: in line 22)"]
    assert imported_run.names() == original.names()
    for name in original.names():
        for actual, expected in zip(imported_run.series(name), original.series(name), strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("format", ["csv", "csv-wide"])
def test_exported_files_can_be_imported(tmp_path: Path, target: ImportTarget, format: str) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for step in range(6):
            bus.log({"a, b": step / 3, "=n": 2**62 + step}, step=step, epoch=step // 2)
    out = tmp_path / "out.csv"
    CliRunner().invoke(app, ["export", str(tmp_path / "r"), "--format", format, "--out", str(out)])
    original, imported_run = metricbus.read(tmp_path / "r"), read(import_csv(out, target))
    assert imported_run.wide() == original.wide()


def test_rewinds_and_partial_values_are_imported(tmp_path: Path, target: ImportTarget) -> None:
    result = from_csv(
        tmp_path,
        target,
        "step,epoch,time,name,value,kind\n"
        "5,0,1.0,x,1.0,scalar\n2,0,2.0,,,rewind\n3,0,3.0,x,2.0,scalar\n4,0,3.0,x,3.0,partial\n",
    )
    assert points(read(result), "x") == [(3, 2.0), (4, 3.0)]
    journal = (Path(result.folder) / "journal" / "0001.jsonl").read_text()
    assert '"kind":"rewind","step":2' in journal
    assert '"partial":true' in journal
    assert Rewind.__struct_config__.tag == "rewind"


@pytest.mark.parametrize(
    "text",
    [
        "step;loss\n1;0.5\n",
        "step\tloss\n1\t0.5\n",
        "\ufeffstep,loss\r\n1,0.5\r\n",
        "step, loss\n\n1, 0.5",
    ],
)
def test_variants_of_csv_are_accepted(tmp_path: Path, target: ImportTarget, text: str) -> None:
    assert points(read(from_csv(tmp_path, target, text)), "loss") == [(1, 0.5)]


def test_names_can_contain_other_delimiters(tmp_path: Path, target: ImportTarget) -> None:
    result = from_csv(tmp_path, target, "step,epoch,a;b;c;d\n1,0,0.5\n")
    assert points(read(result), "a;b;c;d") == [(1, 0.5)]


def test_the_wide_form_reads_times_from_the_given_column(
    tmp_path: Path, target: ImportTarget
) -> None:
    result = from_csv(tmp_path, target, "step,x,wall\n0,1.5,2\n1,2.5,bad\n", time="wall")
    history = read(result)
    assert history.names() == ["x"]
    assert history.series("x").time[0] == 2 * 10**9
    assert result.left_out == [
        "invalid times, replaced by the time of the file: 1 (first: 'bad' in line 3)"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"stp,loss\n1,2\n",
            r"has no column 'step'; did you mean 'stp'\? Name another column with --step",
        ),
        (b"step,x,x\n1,2,3\n", "has two columns named 'x'"),
        (b"step,x\n\xff,1\n", "is not UTF-8 text"),
        (b'step,x\n1,"' + b"x" * 200_000 + b'"\n', "is not valid CSV after line 1: field larger"),
        (b"step,x\n", "Nothing to import"),
        (
            b"step,x\n1,a\n",
            r"Nothing to import. Skipped: cells of column 'x' that are not numbers: 1",
        ),
    ],
)
def test_an_invalid_csv_file_fails_and_leaves_no_run(
    tmp_path: Path, target: ImportTarget, content: bytes, message: str
) -> None:
    path = tmp_path / "given.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        import_csv(path, target)
    assert not target.root.exists() or list(target.root.iterdir()) == []


def test_command_reports_what_was_imported_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "old run.csv").write_text("step,loss,model\n0,0.5,resnet\n")
    result = command("csv", tmp_path / "old run.csv", "--dir", tmp_path / "runs", "--id", "i")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "old run: 1 values in 1 rows, 0 media, 1 series",
        "  left out: cells of column 'model' that are not numbers: 1 (first: 'resnet' in line 2)",
        f"  {tmp_path}/runs/i",
    ]


def test_an_existing_id_fails(tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text("step,loss\n0,0.5\n")
    arguments = ("csv", tmp_path / "given.csv", "--dir", tmp_path / "runs", "--id", "i")
    assert command(*arguments).exit_code == 0
    result = command(*arguments)
    assert result.exit_code == 2
    assert "already has a run with the id 'i'" in result.stderr
    assert points(metricbus.read(tmp_path / "runs" / "i"), "loss") == [(0, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("csv", "x.csv", "--each"), "--each is an option for tensorboard"),
        (("tensorboard", "logs", "--step", "it"), "--step and --time are options for csv"),
        (("tensorboard", "logs", "--each", "--id", "i"), "Leave out one of them"),
        (("csv", "none.csv"), "none.csv does not exist"),
        (("csv", "."), "is a folder"),
    ],
)
def test_misuse_fails_with_status_2(arguments: tuple[str, ...], message: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_help_has_an_example() -> None:
    assert "Example: metricbus import" in command("--help").stdout


# Cells


@pytest.mark.parametrize(
    ("cell", "number"),
    [("1", 1), ("-3", -3), ("1.0", 1.0), ("1e3", 1000.0), ("inf", math.inf), ("True", 1)],
)
def test_parse_number_accepts_numbers(cell: str, number: float) -> None:
    parsed = parse_number(cell)
    assert (type(parsed), parsed) == (type(number), number)


@pytest.mark.parametrize("cell", ["", "abc", "1_000", "1,5", "0x10", "9" * 400])
def test_parse_number_rejects_other_text(cell: str) -> None:
    with pytest.raises(ValueError):
        parse_number(cell)


def test_parse_step_accepts_integers_written_as_floats() -> None:
    assert [parse_step(cell) for cell in ("0", "12.0", "1e3")] == [0, 12, 1000]
    for cell in ("", "1.5", "-1", "nan", "inf", "x", str(2**63)):
        with pytest.raises(ValueError):
            parse_step(cell)


def test_parse_time_is_exact_to_the_nanosecond() -> None:
    assert parse_time("1700000000.123456789") == TIME * 10**9 + 123456789
    assert parse_time("2023-11-14T23:13:20+01:00") == TIME * 10**9
    assert parse_time("2023-11-14 22:13:20.5") == TIME * 10**9 + 5 * 10**8
    for cell in ("x", "-1", "nan", "1e30"):
        with pytest.raises(ValueError):
            parse_time(cell)

"""The same media through every sink, read back with the backend's own reader.

The tests compare the content: pixels, counts and edges, samples, texts, frames and cells. Every
backend must have each medium once, at its step.
"""

from __future__ import annotations

import csv
import io
import json
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image as PillowImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

import metricbus
from metricbus import Audio, Histogram, Image, MetricBus, Table, Text, Video
from metricbus._common.media_records import (
    AudioRecord,
    HistogramRecord,
    ImageRecord,
    TextRecord,
    VideoRecord,
)
from tests.helpers.wandb_reader import wandb_path, wandb_rows

STEPS = [0, 1, 5, 2, 2]  # the last ones are late, one step repeats
RNG = np.random.default_rng(7)
PIXELS = [RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8) for _ in STEPS]
VALUES = [RNG.normal(size=500) for _ in STEPS]
SAMPLES = [RNG.integers(-(2**15), 2**15, (300, 2)).astype(np.int16) for _ in STEPS]
TEXTS = [f"**{number}** ducks: 🦆\n\n- a | b" for number in range(len(STEPS))]
FRAMES = [RNG.integers(0, 256, (3, 6, 5), dtype=np.uint8) for _ in STEPS]
ROWS = [[number, f"row {number}, with a comma"] for number in range(len(STEPS))]


class Item(NamedTuple):
    """One medium at its step, with content that can be compared."""

    name: str
    step: int
    content: Any


class LoggedRun(NamedTuple):
    """The folder of a run, the address of MLflow, and the logged items."""

    folder: Path
    server: str
    items: list[Item]


def pixels(png: bytes) -> bytes:
    content: bytes = PillowImage.open(io.BytesIO(png)).tobytes()
    return content


def frames(gif: bytes) -> bytes:
    picture: Any = PillowImage.open(io.BytesIO(gif))
    found: list[bytes] = []
    for number in range(picture.n_frames):
        picture.seek(number)
        found.append(picture.convert("L").tobytes())
    return b"".join(found)


def samples(wav: bytes) -> bytes:
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, 8000)
        content: bytes = file.readframes(file.getnframes())
        return content


def bins(counts: Any, edges: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return tuple(map(int, counts)), tuple(map(float, edges))


CONTENT: dict[str, Callable[[bytes], bytes]] = {
    "pictures": pixels,
    "film": frames,
    "sound": samples,
    "notes": lambda text: text,
}


@pytest.fixture(scope="module", params=["thread", "process"])
def logged(
    tmp_path_factory: pytest.TempPathFactory, mlflow_server: str, request: pytest.FixtureRequest
) -> LoggedRun:
    items: list[Item] = []
    sinks = f"csv,tensorboard,wandb?mode=offline,mlflow+{mlflow_server}?experiment=media"
    folder = tmp_path_factory.mktemp("runs")
    with MetricBus(sinks=sinks, dir=folder, delivery=request.param) as bus:
        table = Table(columns=["number", "text"])
        for number, step in enumerate(STEPS):
            bus.log("loss", 0.5, step=step)
            bus.log("pictures", Image(PIXELS[number], caption=f"no. {number}"), step=step)
            bus.log("weights", Histogram(VALUES[number], bins=8), step=step)
            bus.log("sound", Audio(SAMPLES[number], 8000), step=step)
            bus.log("notes", Text(TEXTS[number]), step=step)
            bus.log("film", Video(FRAMES[number]), step=step)
            table.append(ROWS[number])
            bus.log("errors", table, step=step)
            items += [
                Item("pictures", step, PIXELS[number].tobytes()),
                Item("weights", step, bins(*np.histogram(VALUES[number], 8))),
                Item("sound", step, SAMPLES[number].tobytes()),
                Item("notes", step, TEXTS[number].encode()),
                Item("film", step, FRAMES[number].tobytes()),
            ]
    assert bus.dir is not None
    assert bus.stats().complete, str(bus.stats())
    return LoggedRun(bus.dir, mlflow_server, items)


def read_journal(logged: LoggedRun) -> Iterator[Item]:
    history = metricbus.read(logged.folder)
    for record in history.media():
        if isinstance(record, HistogramRecord):
            yield Item(record.name, record.step, bins(record.counts, record.edges))
        elif isinstance(record, ImageRecord | AudioRecord | VideoRecord | TextRecord):
            content = CONTENT[record.name](history.files.read(record.file))
            yield Item(record.name, record.step, content)


def read_csv(logged: LoggedRun) -> Iterator[Item]:
    folder = logged.folder / "csv"
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["name"] in CONTENT and row["kind"] != "caption":
                content = CONTENT[row["name"]]((folder / row["value"]).read_bytes())
                yield Item(row["name"], int(row["step"]), content)
    histograms: list[tuple[int, list[int], list[float]]] = []
    with open(folder / "histograms.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["count"]:
                histograms.append((int(row["step"]), [], []))
            else:
                _, counts, edges = histograms[-1]
                counts.append(int(row["bin_count"]))
                edges += [float(row["high"])] if edges else [float(row["low"]), float(row["high"])]
    for step, counts, edges in histograms:
        yield Item("weights", step, bins(counts, edges))


def read_tensorboard(logged: LoggedRun) -> Iterator[Item]:
    size_guidance = dict.fromkeys(("images", "audio", "histograms", "tensors"), 0)
    for lane in {file.parent for file in logged.folder.glob("tensorboard/**/*tfevents*")}:
        found = EventAccumulator(str(lane), size_guidance=size_guidance)
        found.Reload()
        for name in {"pictures", "film"} & set(found.Tags()["images"]):
            for image in found.Images(name):
                yield Item(name, image.step, CONTENT[name](image.encoded_image_string))
        for sound in found.Audio("sound"):
            yield Item("sound", sound.step, samples(sound.encoded_audio_string))
        for event in found.Histograms("weights"):
            histogram = event.histogram_value
            yield Item("weights", event.step, bins(histogram.bucket[1:], histogram.bucket_limit))
        for event in found.Tensors("notes"):
            text = tensor_util.make_ndarray(event.tensor_proto).item()
            yield Item("notes", event.step, text)


def read_wandb(logged: LoggedRun) -> Iterator[Item]:
    for row in wandb_rows(logged.folder):
        step = int(row["metricbus/step"])
        for name in CONTENT.keys() & row.keys():
            value = row[name]
            is_text = isinstance(value, str)
            file = b"" if is_text else wandb_path(logged.folder, value["path"]).read_bytes()
            yield Item(name, step, CONTENT[name](value.encode() if is_text else file))
        if "weights" in row:
            yield Item("weights", step, bins(row["weights"]["values"], row["weights"]["bins"]))


class Mlflow:
    """The run's artifacts on the server."""

    def __init__(self, logged: LoggedRun) -> None:
        self.client = MlflowClient(logged.server)
        experiment = self.client.get_experiment_by_name("media")
        assert experiment is not None
        filter_string = f"tags.`metricbus.run_id` = '{logged.folder.name}'"
        (run,) = self.client.search_runs([experiment.experiment_id], filter_string)
        self.id: str = run.info.run_id

    def files(self, path: str) -> Iterator[str]:
        for found in self.client.list_artifacts(self.id, path):
            yield from self.files(found.path) if found.is_dir else [found.path]

    def read(self, path: str) -> bytes:
        return Path(self.client.download_artifacts(self.id, path)).read_bytes()


def read_mlflow(logged: LoggedRun) -> Iterator[Item]:
    run = Mlflow(logged)
    for path in run.files("images"):
        if path.endswith(".png"):
            yield Item(
                "pictures", int(path.split("+step+")[1].split("+")[0]), pixels(run.read(path))
            )
    for folder, name in (("audio", "sound"), ("texts", "notes"), ("videos", "film")):
        for path in run.files(folder):
            yield Item(name, _step_in(path), CONTENT[name](run.read(path)))
    for path in run.files("histograms"):
        histogram = json.loads(run.read(path))
        yield Item("weights", _step_in(path), bins(histogram["counts"], histogram["edges"]))


def _step_in(path: str) -> int:
    return int(path.rsplit("/", 1)[1].split("-", maxsplit=1)[0])


READERS = {
    "journal": read_journal,
    "csv": read_csv,
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
}


@pytest.mark.parametrize("backend", READERS)
def test_every_backend_has_every_medium_exactly_once(backend: str, logged: LoggedRun) -> None:
    assert Counter(READERS[backend](logged)) == Counter(logged.items)


def rows_in_journal(logged: LoggedRun) -> list[Any]:
    (table,) = metricbus.read(logged.folder).tables("errors")
    return table.rows


def rows_in_csv(logged: LoggedRun) -> list[Any]:
    (path,) = logged.folder.glob("csv/tables/errors-*.csv")
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["number", "text"]
    return [[int(number), text] for number, text in rows]


def rows_in_wandb(logged: LoggedRun) -> list[Any]:
    paths = [row["errors"]["path"] for row in wandb_rows(logged.folder) if "errors" in row]
    parts = [json.loads(wandb_path(logged.folder, path).read_text()) for path in paths]
    return [row for part in parts for row in part["data"]]


def rows_in_mlflow(logged: LoggedRun) -> list[Any]:
    run = Mlflow(logged)
    parts = sorted(run.files("tables"))
    return [row for part in parts for row in json.loads(run.read(part))["data"]]


@pytest.mark.parametrize("rows_in", [rows_in_journal, rows_in_csv, rows_in_wandb, rows_in_mlflow])
def test_every_backend_has_every_row_of_a_growing_table_once(
    rows_in: Callable[[LoggedRun], list[Any]], logged: LoggedRun
) -> None:
    assert rows_in(logged) == ROWS


def test_delivering_media_again_repeats_nothing(logged: LoggedRun) -> None:
    for name in ("csv", "tensorboard"):
        for file in (logged.folder / "offsets").glob(f"{name}-*.json"):
            file.unlink()  # without saved progress, the sink must recognize what its files contain
    metricbus.deliver(logged.folder, sinks="csv,tensorboard")
    assert Counter(read_csv(logged)) == Counter(logged.items)
    assert Counter(read_tensorboard(logged)) == Counter(logged.items)

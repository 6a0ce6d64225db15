"""The same calls through every sink, read back with the backend's own reader.

To add a sink, add a line to `BACKENDS`: its URL, a function that reads its points, and a projection
that turns a logged point into what the backend can represent.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import signal
import struct
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metricbus
from metricbus import MetricBus
from metricbus.testing import MemorySink
from tests.helpers.hparams_reader import hparams, metrics, session_groups
from tests.helpers.limits import HANG_SECS
from tests.helpers.wandb_reader import wandb_config, wandb_rows, wandb_summary, wandb_tags

NAMES = [
    "train/loss",
    "val/acc",
    "a,b",
    'say "x"',
    "line\nbreak",
    "nul\0",
    "../../up",
    "🦆",
    "=cmd()",
    "'quoted",
    "-1",
    "step",
    "epoch",
    "time",
    "value",
    "_step",
    "_runtime",
    "_private",
    "metricbus/step",
    "logged/twice",
    "mean@1",
    "mean_1",
    "timing(s)/gen",
    "a//b/./c/",
    "long" * 200,
    "déjà vu",
    "train.loss",
]


PLACED_AT_EPOCH = "placed-at-epoch"
"""A name whose x axis is the epoch; all others have the step."""


class Point(NamedTuple):
    """A value at its step; `epoch` is None for backends that do not store it.

    Such a backend has one x axis. `step` is then the position on it.
    """

    name: str
    step: int
    epoch: int | None
    value: float


class RecordingHandler(logging.Handler):
    """Stores the log records that it handles."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class LoggedRun:
    """The places at which the values of a run can be read."""

    def __init__(
        self,
        folder: Path,
        memory: MemorySink,
        log_records: list[logging.LogRecord],
        server: str,
    ) -> None:
        self.folder = folder
        self.server = server
        self.memory = memory
        self.log_records = log_records


def read_journal(logged: LoggedRun) -> Iterator[Point]:
    history = metricbus.read(logged.folder)
    for name in history.names():
        series = history.series(name)
        for step, epoch, value in zip(series.step, series.epoch, series.value, strict=True):
            yield Point(name, int(step), int(epoch), value)


def read_memory(logged: LoggedRun) -> Iterator[Point]:
    for name in logged.memory.names():
        for point in logged.memory.series(name):
            yield Point(name, point.step, point.epoch, point.value)


def read_logging(logged: LoggedRun) -> Iterator[Point]:
    for record in logged.log_records:
        for name, value in getattr(record, "metrics", {}).items():
            yield Point(name, record.step, record.epoch, value)  # type: ignore[attr-defined]


def read_csv(logged: LoggedRun) -> Iterator[Point]:
    with open(logged.folder / "csv" / "metrics.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["kind"] == "scalar"
            text = row["value"]
            value = int(text) if text.lstrip("-").isdigit() else float(text)
            name = row["name"].removeprefix("'")
            yield Point(name, int(row["step"]), int(row["epoch"]), value)


def read_tensorboard(logged: LoggedRun) -> Iterator[Point]:
    lanes = {file.parent for file in logged.folder.glob("tensorboard/**/*tfevents*")}
    for lane in lanes:
        events = EventAccumulator(str(lane), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                yield Point(tag, event.step, None, event.value)


def read_wandb(logged: LoggedRun) -> Iterator[Point]:
    for columns in wandb_rows(logged.folder):
        position = int(columns["metricbus/step"]), int(columns["metricbus/epoch"])
        for key, value in columns.items():
            if not key.startswith(("_", "metricbus/")):
                yield Point(key.removeprefix("logged/"), *position, value)


def read_mlflow_file(logged: LoggedRun) -> Iterator[Point]:
    return read_mlflow(f"sqlite:///{logged.folder.parent}/mlflow.db", logged.folder.name)


def read_mlflow_server(logged: LoggedRun) -> Iterator[Point]:
    return read_mlflow(logged.server, logged.folder.name)


def read_mlflow(uri: str, id: str, experiment_name: str = "conformance") -> Iterator[Point]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    filter_string = f"tags.`metricbus.run_id` = '{id}'"
    (run,) = client.search_runs([experiment.experiment_id], filter_string)
    for key in run.data.metrics:
        name = run.data.tags.get(f"metricbus.name.{key}", key)
        for metric in client.get_metric_history(run.info.run_id, key):
            yield Point(name, metric.step, None, metric.value)


def unchanged(point: Point) -> Point:
    return point


def as_json_number(point: Point) -> Point:
    """W&B does not distinguish 2.0 from 2."""
    value = point.value
    if not math.isfinite(value) or not float(value).is_integer():
        return point
    return point._replace(value=int(value))


def on_one_axis(point: Point, value: float) -> Point:
    position = point.epoch if point.name == PLACED_AT_EPOCH else None
    return Point(point.name, point.step if position is None else position, None, value)


def as_float64_on_one_axis(point: Point) -> Point:
    value = float(point.value)
    if math.isinf(value):
        value = math.copysign(sys.float_info.max, value)
    return on_one_axis(point, value + 0.0)  # SQL has no -0.0


def as_float32_on_one_axis(point: Point) -> Point:
    value = float(point.value)
    if math.isfinite(value):
        try:
            (value,) = struct.unpack("f", struct.pack("f", value))
        except OverflowError:
            value = math.copysign(math.inf, value)
    return on_one_axis(point, value)


class Backend(NamedTuple):
    url: str | None
    read: Callable[[LoggedRun], Iterator[Point]]
    projection: Callable[[Point], Point]


BACKENDS = {
    "journal": Backend(None, read_journal, unchanged),
    "memory": Backend(None, read_memory, unchanged),
    "logging": Backend("logging", read_logging, unchanged),
    "csv": Backend("csv", read_csv, unchanged),
    "tensorboard": Backend("tensorboard", read_tensorboard, as_float32_on_one_axis),
    "wandb": Backend("wandb", read_wandb, as_json_number),
    "mlflow": Backend("mlflow?experiment=conformance", read_mlflow_file, as_float64_on_one_axis),
    "mlflow-server": Backend(
        "mlflow+{server}?experiment=conformance", read_mlflow_server, as_float64_on_one_axis
    ),
}


class Script:
    """Logs values and records what every sink must contain."""

    def __init__(self, bus: MetricBus) -> None:
        self.bus = bus
        self.points: list[Point] = []

    def log(self, name: str, value: float, step: int, epoch: int) -> None:
        self.bus.log(name, value, step=step, epoch=epoch)
        self.points.append(Point(name, step, epoch, value))

    def run(self) -> None:
        for step in range(101):
            self.log("train/loss", 1 / (step + 1), step, step // 50)
            self.log("train/lr", 1e-3 * step, step, step // 50)
            if step == 50:
                self.log("val/acc", 0.5, 50, 0)
        self.log("val/acc", 0.25, 10, 0)  # a late evaluation
        self.log("val/acc", 0.125, 5, 0)  # an even later one
        for value in (1.0, 2.0, 2.0, 3.0):  # a step that repeats
            self.log("train/loss", value, 100, 2)
        for step, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.8e308 / 2)):
            self.log("odd", value, step, 3)
        for step, integer in enumerate((2**63 - 1, -(2**63), 2**53 + 1, 0)):
            self.log("integers", integer, step, 3)
        self.log("mixed", 0.5, 0, 3)
        self.log("mixed", 2**53 + 1, 1, 3)
        for step, name in enumerate(NAMES):
            self.log(name, float(step), 1000 + step, 4)
        self.bus.define("per-epoch/*", on_step=False, on_epoch=True)
        self.bus.define(PLACED_AT_EPOCH, axis="epoch")
        for epoch in (5, 6):
            self.log("train/loss", 0.5, 1000 * epoch, epoch)
            self.log(PLACED_AT_EPOCH, 1.5 * epoch, 1000 * epoch, epoch)
            for value in (1, 2):  # logged as their mean, at the step of the last one
                self.bus.log("per-epoch/loss", value, step=999 * epoch + value, epoch=epoch)
            self.points.append(Point("per-epoch/loss", 999 * epoch + 2, epoch, 1.5))
            self.bus.end_epoch()


@pytest.fixture(scope="module", params=["thread", "process"])
def logged(
    tmp_path_factory: pytest.TempPathFactory, mlflow_server: str, request: pytest.FixtureRequest
) -> tuple[LoggedRun, list[Point]]:
    memory, handler = MemorySink(), RecordingHandler()
    logger = logging.getLogger("metricbus")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    urls = [
        backend.url.format(server=mlflow_server) for backend in BACKENDS.values() if backend.url
    ]
    folder_of_runs = tmp_path_factory.mktemp("runs")
    options = {"dir": folder_of_runs, "delivery": request.param, "close_timeout": HANG_SECS}
    with MetricBus(sinks=[memory, *urls], **options) as bus:
        script = Script(bus)
        script.run()
        folder = bus.dir
    assert folder is not None
    assert bus.stats().complete, str(bus.stats())
    return LoggedRun(folder, memory, handler.records, mlflow_server), script.points


def comparable(point: Point) -> tuple[str, int, int | None, str]:
    """Return the point with its value as text, so that NaN equals NaN and 2 differs from 2.0."""
    is_integer = isinstance(point.value, int | np.integer)
    value = str(int(point.value)) if is_integer else repr(float(point.value))
    return (point.name, point.step, point.epoch, value)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_every_backend_has_every_value_exactly_once(
    backend: Backend, logged: tuple[LoggedRun, list[Point]]
) -> None:
    expected = Counter(comparable(backend.projection(point)) for point in logged[1])
    found = map(backend.projection, backend.read(logged[0]))
    assert Counter(map(comparable, found)) == expected


@pytest.mark.parametrize("name", ["journal", "memory", "logging", "csv", "wandb"])
def test_backends_keep_the_order_of_late_and_repeated_values(
    name: str, logged: tuple[LoggedRun, list[Point]]
) -> None:
    values = [point.value for point in BACKENDS[name].read(logged[0]) if point.name == "val/acc"]
    assert values[:3] == [0.5, 0.25, 0.125]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_training_and_validation_of_an_epoch_end_at_the_same_position(
    name: str, tmp_path: Path
) -> None:
    sinks = [BACKENDS[name].url or ""]
    with MetricBus(sinks=sinks, dir=tmp_path, close_timeout=HANG_SECS) as bus:
        bus.define("val/loss", on_step=False, on_epoch=True)
        for _ in bus.epochs(3):
            for _ in bus.steps(range(4)):
                bus.log("train/loss", 1.0)
            for loss in (0.5, 1.0):
                bus.log("val/loss", loss)
    assert bus.folder is not None
    points = list(BACKENDS[name].read(LoggedRun(bus.folder, MemorySink(), [], "")))
    ends = {
        metric: [point.step for point in points if point.name == metric][-3:]
        for metric in ("train/loss", "val/loss", "time/epoch")
    }
    assert ends == {
        "train/loss": [9, 10, 11],
        "val/loss": [3, 7, 11],
        "time/epoch": [3, 7, 11],
    }


def test_every_backend_marks_partial_rows(tmp_path: Path, mlflow_server: str) -> None:
    """A process joins the run, writes its partial aggregates, and is killed."""
    code = """
        import os, signal, sys
        from pathlib import Path
        from metricbus._journal.segment_writer import SegmentWriter
        from metricbus._common.records import PartialAggregates, ScalarRow
        journal = SegmentWriter(Path(sys.argv[1]), "r")
        journal.append([ScalarRow(step=1, epoch=0, time=10**9, values={"whole": 1.0})])
        row = ScalarRow(step=2, epoch=0, time=2 * 10**9, values={"loss": 0.5}, partial=True)
        journal.append([PartialAggregates(time=3 * 10**9, rows=[row])])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    memory, handler = MemorySink(), RecordingHandler()
    logging.getLogger("metricbus").addHandler(handler)
    logging.getLogger("metricbus").setLevel(logging.INFO)
    urls = ["logging", "csv", "tensorboard", "wandb", f"mlflow+{mlflow_server}?experiment=partial"]
    with MetricBus(sinks=[memory, *urls], dir=tmp_path, close_timeout=HANG_SECS) as bus:
        folder = bus.dir
        assert folder is not None
        command = [sys.executable, "-c", textwrap.dedent(code), str(folder / "journal")]
        assert subprocess.run(command, timeout=HANG_SECS, check=False).returncode == -signal.SIGKILL
    report = bus.stats()
    assert report.complete, str(report)
    assert {sink.delivered for sink in report.sinks.values()} == {2}
    logged = LoggedRun(folder, memory, handler.records, mlflow_server)
    assert [(record.values, record.partial) for record in memory.records] == [
        ({"whole": 1.0}, False),
        ({"loss": 0.5}, True),
    ]
    assert "step 2 epoch 0 | loss=0.5 (partial)" in [
        record.getMessage() for record in handler.records
    ]
    assert ",loss,0.5,partial\r\n" in (folder / "csv" / "metrics.csv").read_bytes().decode()
    assert [row["loss"] for row in wandb_rows(folder) if row.get("metricbus/partial")] == [0.5]
    assert Point("loss_partial", 2, None, 0.5) in list(read_tensorboard(logged))
    assert Point("loss_partial", 2, None, 0.5) in list(
        read_mlflow(mlflow_server, folder.name, "partial")
    )


# What a run gains while it is open


class Description(NamedTuple):
    """The config, the tags and the summary of a run, as far as a backend has them."""

    config: dict[str, Any]
    tags: set[str]
    summary: dict[str, float]


def describe_journal(logged: LoggedRun) -> Description:
    return describe(metricbus.read(logged.folder).run)


def describe_memory(logged: LoggedRun) -> Description:
    assert logged.memory.run is not None
    return describe(logged.memory.run)


def describe(run: metricbus.Run) -> Description:
    return Description(run.config, set(run.tags), run.summary)


def describe_logging(logged: LoggedRun) -> Description:
    """Return what the lines say; values in the summary have six digits there."""
    config: dict[str, Any] = {}
    tags: set[str] = set()
    summary: dict[str, float] = {}
    for record in logged.log_records:
        kind, _, text = record.getMessage().partition(" ")
        if kind == "config":
            config |= json.loads(text)
        elif kind == "tags":
            tags |= set(text.split())
        elif kind == "summary":
            for name, value in (pair.split("=") for pair in text.split()):
                summary[name] = float(value) if value != "none" else math.nan
    summary = {name: value for name, value in summary.items() if not math.isnan(value)}
    return Description(config, tags, summary)


def describe_csv(logged: LoggedRun) -> Description:
    config, run = (
        json.loads((logged.folder / "csv" / name).read_text())
        for name in ("config.json", "run.json")
    )
    return Description(config, set(run["tags"]), run["summary"])


def describe_tensorboard(logged: LoggedRun) -> Description:
    (group,) = session_groups(logged.folder)
    summary = {
        name.removeprefix("summary/"): value
        for name, value in metrics(group).items()
        if name.startswith("summary/")
    }
    return Description(hparams(group), set(), summary)


def describe_wandb(logged: LoggedRun) -> Description:
    config = wandb_config(logged.folder)
    del config["_wandb"]
    # W&B adds the last value of each column.
    columns = {name for row in wandb_rows(logged.folder) for name in row} - {"test/acc"}
    own = wandb_summary(logged.folder).items()
    summary = {name: value for name, value in own if name not in columns and name[0] != "_"}
    return Description(config, set(wandb_tags(logged.folder)), summary)


def describe_mlflow(logged: LoggedRun) -> Description:
    client = MlflowClient(logged.server)
    experiment = client.get_experiment_by_name("description")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    params, tags = run.data.params, run.data.tags
    config = {name: tags.get(f"metricbus.value.{name}", value) for name, value in params.items()}
    summary = {
        name.removeprefix("summary/"): value
        for name, value in run.data.metrics.items()
        if name.startswith("summary/") and not math.isnan(value)  # NaN: removed
    }
    return Description(config, {tag for tag, value in tags.items() if value == "true"}, summary)


GROWN = Description(
    {"lr": 0.25, "optimizer": {"name": "adam"}, "workers": 4},
    {"first", "second"},
    {"test/acc": 0.5, "best/val/acc": 0.75, "best/val/loss": -0.75},
)
FLAT = {"lr": 0.25, "optimizer/name": "adam", "workers": 4}

DESCRIPTIONS = {
    "journal": (describe_journal, GROWN),
    "memory": (describe_memory, GROWN),
    "logging": (describe_logging, GROWN),
    "csv": (describe_csv, GROWN),
    "tensorboard": (describe_tensorboard, GROWN._replace(config=FLAT, tags=set())),
    "wandb": (describe_wandb, GROWN),
    "mlflow": (
        describe_mlflow,
        GROWN._replace(config={name: str(value) for name, value in FLAT.items()}),
    ),
}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> LoggedRun:
    """A run whose config, tags and summary have changed several times."""
    memory, handler = MemorySink(), RecordingHandler()
    logger = logging.getLogger("metricbus")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    urls = [
        "logging",
        "csv",
        "tensorboard",
        "wandb?mode=offline",
        f"mlflow+{mlflow_server}?experiment=description",
    ]
    config = {"lr": 0.5, "optimizer": {"name": "adam"}}
    options: dict[str, Any] = {"dir": tmp_path_factory.mktemp("runs"), "close_timeout": HANG_SECS}
    with MetricBus(sinks=[memory, *urls], config=config, tags=["first"], **options) as bus:
        bus.define("val/acc", best="max")
        bus.define("val/loss", best="min")
        for step, value in enumerate((0.25, 0.75, 2.0)):
            bus.log({"val/acc": value, "val/loss": -value, "test/acc": value}, step=step)
            bus.config.update(lr=0.5 - step / 8)
            bus.flush()
        bus.log("gone", 1.0, step=3)
        bus.define("gone", best="max")
        bus.log("gone", 1.0, step=3)
        bus.flush()
        bus.rewind(1)
        bus.log({"val/acc": 0.5, "val/loss": 0.5}, step=2)
        bus.config.update(workers=4)
        bus.add_tags("second", "first")
        for value in (0.25, 0.5):
            bus.summarize("test/acc", value)
        bus.log("test/acc", 0.125, step=3)
        folder = bus.dir
    assert folder is not None
    assert bus.stats().complete, str(bus.stats())
    return LoggedRun(folder, memory, handler.records, mlflow_server)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_every_backend_has_the_final_config_tags_and_summary(
    name: str, described: LoggedRun
) -> None:
    read, expected = DESCRIPTIONS[name]
    assert read(described) == expected

"""Hyperparameters and final metrics, by which the backends compare runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api_pb2

from metricbus import MetricBus
from metricbus.sinks.tensorboard.event_file import read_tfrecords
from tests.helpers.hparams_reader import hparams, metrics, session_groups
from tests.helpers.wandb_reader import wandb_config, wandb_rows

RATES = {0.125: 0.5, 0.25: 0.75}  # learning rate: final accuracy


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with two runs, each logged to three backends."""
    folder = tmp_path_factory.mktemp("runs")
    sinks = f"tensorboard:{folder}/board,wandb?mode=offline,mlflow:{folder}/mlflow.db"
    for rate, accuracy in RATES.items():
        config = {"rate": rate, "optimizer": {"name": "adam"}}
        with MetricBus(id=f"rate-{rate}", config=config, sinks=sinks, dir=folder) as bus:
            for step in range(3):
                bus.log("val/acc", accuracy * step / 2, step=step)
    return folder


def test_tensorboards_hparams_page_shows_config_and_metrics(root: Path) -> None:
    groups = session_groups(root / "board")
    assert {hparams(group)["rate"]: metrics(group)["val/acc"] for group in groups} == RATES
    assert {hparams(group)["optimizer/name"] for group in groups} == {"adam"}


def test_tensorboards_hparams_page_shows_the_config_at_the_end(tmp_path: Path) -> None:
    with MetricBus(id="a", config={"rate": 1.0}, sinks="tensorboard", dir=tmp_path) as bus:
        bus.log("x", 0.5)
        bus.config.update(rate=0.5, workers=4)
        bus.log("x", 0.25)
    (group,) = session_groups(tmp_path)
    assert hparams(group) == {"rate": 0.5, "workers": 4.0}


def test_tensorboards_hparams_page_shows_a_run_that_began_without_config(tmp_path: Path) -> None:
    with MetricBus(id="a", sinks="tensorboard", dir=tmp_path) as bus:
        bus.log("x", 0.5)
        bus.config.update(rate=0.5)
    (group,) = session_groups(tmp_path)
    assert hparams(group) == {"rate": 0.5}


def test_tensorboard_shows_the_summary_of_a_run_without_config(tmp_path: Path) -> None:
    with MetricBus(id="a", sinks="tensorboard", dir=tmp_path) as bus:
        bus.summarize("accuracy", 0.75)
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("summary/accuracy")
    assert (event.step, event.value) == (0, 0.75)


def test_tensorboards_hparams_page_shows_the_summary_of_a_failed_run(tmp_path: Path) -> None:
    bus = MetricBus(id="a", config={"rate": 0.5}, sinks="tensorboard", dir=tmp_path)
    bus.summarize("accuracy", 0.75)
    bus.close("failed")
    (group,) = session_groups(tmp_path, api_pb2.STATUS_FAILURE)
    assert metrics(group) == {"summary/accuracy": 0.75}


def test_tensorboard_shows_the_summary_of_the_last_attempt_and_every_value(tmp_path: Path) -> None:
    for attempt in range(3):
        with MetricBus(
            id="a", sinks="tensorboard", dir=tmp_path, resume=True, config={"attempt": attempt}
        ) as bus:
            bus.log("x", float(attempt), step=attempt)
            bus.summarize("accuracy", attempt / 4)
    (group,) = session_groups(tmp_path)
    assert hparams(group) == {"attempt": 2.0}
    assert metrics(group) == {"x": 2.0, "summary/accuracy": 0.5}
    (main,) = tmp_path.glob("a/tensorboard/events*.metricbus")
    events = [Event.FromString(data) for data, _ in read_tfrecords(main)]
    values = [value for event in events for value in event.summary.value]
    assert [value.simple_value for value in values if value.tag == "x"] == [0.0, 1.0, 2.0]


def test_mlflow_finds_runs_by_param_and_sorts_them_by_metric(root: Path) -> None:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(
        experiments, "params.`optimizer/name` = 'adam'", order_by=["metrics.`val/acc` DESC"]
    )
    assert [(run.data.params["rate"], run.data.metrics["val/acc"]) for run in runs] == [
        ("0.25", 0.75),
        ("0.125", 0.5),
    ]


def test_wandb_has_the_config_and_the_last_values_of_each_run(root: Path) -> None:
    for rate, accuracy in RATES.items():
        folder = root / f"rate-{rate}"
        assert wandb_config(folder)["rate"] == rate
        assert [row["val/acc"] for row in wandb_rows(folder)][-1] == accuracy

"""Hyperparameters and final metrics, by which the backends compare runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from metricbus import MetricBus
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
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(root / "board"))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(root / "board"))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(root)))
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    response = list_session_groups.Handler(RequestContext(), context, "x", request).run()
    assert {
        group.hparams["rate"].number_value: group.metric_values[0].value
        for group in response.session_groups
    } == RATES
    assert {group.metric_values[0].name.tag for group in response.session_groups} == {"val/acc"}
    assert {group.hparams["optimizer/name"].string_value for group in response.session_groups} == {
        "adam"
    }


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

"""The migration guides: the code of both libraries runs and logs the same data.

On each page, the code blocks that start with the same comment (`# wandb`, `# metricbus`) form one
script. Both scripts run in an empty folder. The backend's own reader then reads what each of them
has written.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import wandb
from markdown_it import MarkdownIt

import metricbus
from benchmarks.peers.services import make_template
from tests.helpers.hparams_reader import hparams, session_groups
from tests.helpers.hparams_reader import metrics as metrics_of
from tests.helpers.wandb_reader import wandb_config, wandb_rows, wandb_summary, wandb_tags

PAGES = Path(__file__).parents[2] / "docs" / "coming-from"
METRICBUS = "# metricbus"

Values = dict[tuple[str, int], float]


@pytest.fixture
def reset_mlflow() -> Iterator[None]:
    """Cleanup of MLflow's global state, which the script sets and other tests would see."""
    import mlflow
    from mlflow.tracking import fluent

    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # None restores the default
    fluent._active_experiment_id = None
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


def blocks(page: str) -> list[tuple[int, str]]:
    """Return the first line number and the text of each Python block on a page."""
    tokens = MarkdownIt().parse((PAGES / page).read_text())
    return [
        (token.map[0] + 2 if token.map else 0, token.content)
        for token in tokens
        if token.type == "fence" and token.info.strip() == "python"
    ]


def label(code: str) -> str:
    """Return the comment that assigns a block to one of the scripts."""
    return code.partition("\n")[0]


def run(page: str, *labels: str) -> dict[str, Any]:
    """Run all blocks with these labels as one script and return its global variables."""
    names: dict[str, Any] = {"__name__": "__docs__"}
    with warnings.catch_warnings():
        if METRICBUS not in labels:
            warnings.simplefilter("ignore")  # warnings of other libraries
        for line, code in blocks(page):
            if label(code) in labels:
                padded = "\n" * (line - 1) + code  # errors show the line number of the page
                exec(compile(padded, page, "exec"), names)
    return names


def test_every_block_has_a_label() -> None:
    for page, labels in {
        "summarywriter.md": {"# SummaryWriter"},
        "wandb.md": {"# wandb"},
        "mlflow.md": {"# mlflow"},
        "lightning.md": {"# Lightning", "# the logger"},
    }.items():
        assert {label(code) for _, code in blocks(page)} == labels | {METRICBUS}, page


# SummaryWriter


def events(folder: Path) -> Values:
    """Return every scalar in the event files of a folder and its sub-runs of late rows."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return {
        (value.tag, event.step): value.simple_value
        for file in (*folder.glob("events.*"), *folder.glob("late-*/events.*"))
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.HasField("simple_value")
    }


def displayed(folder: Path) -> tuple[set[tuple[str, int]], dict[str, list[str]]]:
    """Return what TensorBoard displays for a folder without sub-runs: scalars and media names."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    tags = reader.Tags()
    scalars = {(tag, event.step) for tag in tags["scalars"] for event in reader.Scalars(tag)}
    return scalars, {kind: sorted(tags[kind]) for kind in ("images", "audio", "histograms")}


@pytest.fixture
def summary_writers() -> tuple[Path, Path]:
    """The folders that the SummaryWriter script and the metricbus script have written."""
    run("summarywriter.md", "# SummaryWriter")
    Path("logs").rename("theirs")
    run("summarywriter.md", METRICBUS)
    return Path("theirs/digits"), Path("logs/digits")


def test_event_files_have_the_same_scalars(summary_writers: tuple[Path, Path]) -> None:
    theirs, ours = map(events, summary_writers)
    loss = {("loss/train", 4): pytest.approx(0.2), ("loss/val", 4): pytest.approx(0.3)}
    final = {("summary/acc", 0): pytest.approx(0.9)}
    assert ours == theirs | loss | final  # SummaryWriter writes these to sub-runs
    sub_runs = [summary_writers[0] / f"loss_{name}" for name in ("train", "val")]
    assert [list(events(folder)) for folder in sub_runs] == [[("loss", 4)]] * 2
    assert {("late", 50), ("late", 10), ("train/loss", 5)} <= ours.keys()


def test_tensorboard_displays_the_same_media_and_hides_the_same_scalars(
    summary_writers: tuple[Path, Path],
) -> None:
    (their_scalars, theirs), (our_scalars, ours) = map(displayed, summary_writers)
    assert (
        theirs
        == ours
        == {"images": ["batch", "sample"], "audio": ["sound"], "histograms": ["weights"]}
    )
    assert their_scalars <= our_scalars
    assert "late" not in {tag for tag, _ in their_scalars | our_scalars}
    assert ("train/loss", 4) in our_scalars


def test_the_hparams_page_shows_the_same_config_and_final_metric(
    summary_writers: tuple[Path, Path],
) -> None:
    (theirs,) = session_groups(summary_writers[0])
    (ours,) = session_groups(summary_writers[1].parent)
    assert hparams(theirs) == hparams(ours) == {"lr": 0.1}
    assert metrics_of(theirs)["hparam/acc"] == metrics_of(ours)["summary/acc"]


def test_the_script_runs_with_tensorboardx(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorboardX
    import torch.utils.tensorboard

    # tensorboardX names its files by the second, so the second writer would overwrite the first.
    number = itertools.count()

    def writer(*args: Any, **options: Any) -> Any:
        return tensorboardX.SummaryWriter(*args, filename_suffix=f".{next(number)}", **options)

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", writer)
    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_audio", Mock())  # requires soundfile
    run("summarywriter.md", "# SummaryWriter")
    assert events(Path("logs/digits")).keys() >= {("train/loss", 0), ("val/acc", 4), ("late", 10)}


# W&B


def rows(folder: Path, step: str) -> tuple[Values, set[str]]:
    """Return the numbers in W&B's history by name and step, and the names of the media."""
    numbers: Values = {}
    media: set[str] = set()
    for row in wandb_rows(folder):
        for name, value in row.items():
            if isinstance(value, dict):
                media.add(name)
            elif not name.startswith(("_", "metricbus/")):
                numbers[name, row[step]] = value
    return numbers, media


@pytest.fixture
def wandb_runs() -> tuple[Path, Path]:
    """The folders with the W&B runs of both scripts."""
    wandb.teardown()  # otherwise W&B reuses the folder of this process's first run
    run("wandb.md", "# wandb")
    return Path(), run("wandb.md", METRICBUS)["bus"].dir


def test_metricbus_delivers_the_values_of_the_wandb_script_and_the_late_one(
    wandb_runs: tuple[Path, Path],
) -> None:
    theirs, their_media = rows(wandb_runs[0], "_step")
    ours, our_media = rows(wandb_runs[1], "metricbus/step")
    implied = {"tokens", "val/acc"}  # logged without a step, which each library assigns
    assert {key: ours[key] for key in theirs if key[0] not in implied} == {
        key: value for key, value in theirs.items() if key[0] not in implied
    }
    assert ours.keys() - theirs.keys() == {("late", 10), ("tokens", 61), ("val/acc", 61)}
    assert their_media == our_media == {"weights", "sample", "errors"}


def test_for_a_repeated_step_wandb_keeps_the_last_value_and_metricbus_both(
    wandb_runs: tuple[Path, Path],
) -> None:
    theirs, ours = (
        [row["again"] for row in wandb_rows(folder) if "again" in row] for folder in wandb_runs
    )
    assert (theirs, ours) == ([2.0], [1.0, 2.0])


def test_wandb_has_the_same_config_tags_final_value_and_axis(
    wandb_runs: tuple[Path, Path],
) -> None:
    for folder in wandb_runs:
        config = wandb_config(folder)
        config.pop("_wandb", None)  # W&B's internal entries
        assert config == {"lr": 0.05, "optimizer": {"name": "sgd"}, "workers": 4}
        assert set(wandb_tags(folder)) == {"baseline", "tuned"}
        assert wandb_summary(folder)["test/acc"] == 0.85
    assert wandb_summary(wandb_runs[1])["best/test/loss"] == 0.25
    (row,) = [row for row in wandb_rows(wandb_runs[1]) if "val/acc" in row]
    assert row["metricbus/x/tokens"] == 4096


# MLflow


def metrics(database: str) -> tuple[Values, dict[str, str], dict[str, str]]:
    """Return the points of the only run by key and step, its params and its tags."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    points = {
        (key, point.step): point.value
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    }
    return points, run.data.params, run.data.tags | {"status": run.info.status}


@pytest.mark.usefixtures("reset_mlflow")
def test_mlflow_has_the_same_metrics_and_params() -> None:
    make_template(Path())  # MLflow needs seconds to create its tables
    for database in ("theirs.db", "ours.db"):
        shutil.copy("mlflow-empty.db", database)
    run("mlflow.md", "# mlflow")
    run("mlflow.md", METRICBUS)
    theirs, their_params, their_tags = metrics("theirs.db")
    ours, our_params, our_tags = metrics("ours.db")
    assert math.isnan(theirs.pop(("nan", 0)))
    assert math.isnan(ours.pop(("nan", 0)))
    assert theirs.pop(("test/acc", 0)) == ours.pop(("summary/test/acc", 0)) == 0.85
    only_metricbus = {key: value for key, value in ours.items() if key not in theirs}
    assert ours == theirs | only_metricbus
    assert only_metricbus.pop(("mean_1", 0)) == 0.5
    assert our_tags["metricbus.name.mean_1"] == "mean@1"
    assert {key.split("/")[1] for key, _ in only_metricbus} == {"histogram"}
    assert their_params == our_params == {"lr": "0.1", "optimizer/name": "sgd", "workers": "4"}
    assert their_tags["tuned"] == our_tags["tuned"] == "true"
    assert their_tags["status"] == our_tags["status"] == "FINISHED"
    assert (their_tags["baseline"], our_tags["baseline"]) == ("yes", "true")
    assert json.loads(our_tags["mlflow.loggedArtifacts"])[0]["type"] == "table"


def test_mlflow_retries_as_often_as_documented() -> None:
    from mlflow.environment_variables import (
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    )

    retries, backoff = MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR
    factor = backoff.get()  # type: ignore[no-untyped-call]
    assert retries.get() == 7  # type: ignore[no-untyped-call]
    assert sum(factor * 2**retry for retry in range(1, 7)) == pytest.approx(240, rel=0.1)  # seconds


# Lightning


def series(folder: Path) -> dict[tuple[str, int, int], float]:
    """Return the values of a run by name, step and epoch."""
    history = metricbus.read(folder)
    return {
        (name, int(step), int(epoch)): value
        for name in history.names()
        for points in [history.series(name)]
        for step, epoch, value in zip(points.step, points.epoch, points.value, strict=True)
    }


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """The variables of the Lightning script, such as the model and both loggers."""
    variables = run("lightning.md", "# Lightning", "# the logger")
    yield variables
    variables["our_logger"].bus.close()


def test_the_logger_and_a_plain_loop_log_the_same_values_as_lightnings_logger(
    names: dict[str, Any],
) -> None:
    with open(Path(names["their_logger"].log_dir) / "metrics.csv", newline="") as lines:
        theirs = {
            (name, int(row["step"]), int(row["epoch"])): float(value)
            for row in csv.DictReader(lines)
            for name, value in row.items()
            if value and name not in ("step", "epoch")
        }
    assert series(names["our_logger"].bus.dir) == theirs
    assert dict(names["our_logger"].bus.config) == {"lr": 0.1}
    plain_loop = series(run("lightning.md", METRICBUS)["bus"].dir)
    for (name, step, epoch), value in theirs.items():
        ours = plain_loop[name.removesuffix("_step"), step, epoch]
        assert ours == pytest.approx(value, rel=1e-4), (name, step)


@pytest.mark.filterwarnings("ignore")  # Lightning's: few workers, no validation
def test_the_logger_stays_open_after_test_and_a_failed_fit_fails_the_run(
    names: dict[str, Any],
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    model_class: Any = names["Model"]
    steps = {"training_step": fail, "test_step": model_class.validation_step}
    logger, model = names["our_logger"], type("Failing", (model_class,), steps)()
    trainer = names["Trainer"](logger=logger, accelerator="cpu", enable_progress_bar=False)
    trainer.test(model, names["validation"], verbose=False)
    assert logger.bus.flush().complete
    assert series(logger.bus.dir).keys() >= {("val/loss", 0, 0)}
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model, names["training"])
    assert json.loads((logger.bus.dir / "run.json").read_text())["status"] == "failed"


# References in the text


@pytest.mark.parametrize("page", ["wandb.md", "mlflow.md", "../comparison.md"])
def test_library_functions_that_a_page_mentions_exist(page: str) -> None:
    """Check names such as `wandb.Html`, `run.watch(...)` and `mlflow.log_dict`."""
    text = (PAGES / page).read_text()
    for library, attribute in set(re.findall(r"`(wandb|mlflow)\.(\w+)", text)):
        module = importlib.import_module(library)
        assert hasattr(module, attribute), f"{page}: {library}.{attribute}"
    for method in set(re.findall(r"`run\.(\w+)\(", text)):
        assert hasattr(importlib.import_module("wandb").Run, method), f"{page}: run.{method}"


def test_summary_writer_methods_that_the_page_mentions_exist() -> None:
    from torch.utils.tensorboard import SummaryWriter

    text = (PAGES / "summarywriter.md").read_text()
    methods = set(re.findall(r"`(add_\w+)", text))
    assert len(methods) > 10
    assert all(hasattr(SummaryWriter, name) for name in methods)

"""The pages for those who come from elsewhere: both sides run, and both backends have the same.

On each page, the blocks that begin with one comment (`# wandb`, `# metricbus`) are one script. Both
run in one empty folder; then the backend's own reader says what each has left there.
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
from tests.helpers.wandb_reader import wandb_config, wandb_rows

PAGES = Path(__file__).parents[2] / "docs" / "coming-from"
OURS = "# metricbus"

Values = dict[tuple[str, int], float]


@pytest.fixture
def mlflow_as_it_was() -> Iterator[None]:
    """What their side sets holds for the whole process, and would reach other tests."""
    import mlflow
    from mlflow.tracking import fluent

    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # it takes that for its default
    fluent._active_experiment_id = None
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


def blocks(page: str) -> list[tuple[int, str]]:
    """The Python blocks of a page: their first line and text."""
    tokens = MarkdownIt().parse((PAGES / page).read_text())
    return [
        (token.map[0] + 2 if token.map else 0, token.content)
        for token in tokens
        if token.type == "fence" and token.info.strip() == "python"
    ]


def whose(code: str) -> str:
    return code.partition("\n")[0]


def run(page: str, *sides: str) -> dict[str, Any]:
    """Runs all blocks of these sides as one script; what is left of its names."""
    names: dict[str, Any] = {"__name__": "__docs__"}
    with warnings.catch_warnings():
        if OURS not in sides:
            warnings.simplefilter("ignore")  # what other libraries warn of is theirs
        for line, code in blocks(page):
            if whose(code) in sides:
                padded = "\n" * (line - 1) + code  # errors show the page's own line
                exec(compile(padded, page, "exec"), names)
    return names


def test_every_block_says_whose_it_is() -> None:
    for page, theirs in {
        "summarywriter.md": {"# SummaryWriter"},
        "wandb.md": {"# wandb"},
        "mlflow.md": {"# mlflow"},
        "lightning.md": {"# Lightning", "# the logger"},
    }.items():
        assert {whose(code) for _, code in blocks(page)} == theirs | {OURS}, page


# SummaryWriter


def events(folder: Path) -> Values:
    """All scalars in the files of one folder and its sub-runs of late rows, as they are there."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return {
        (value.tag, event.step): value.simple_value
        for file in (*folder.glob("events.*"), *folder.glob("late-*/events.*"))
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.HasField("simple_value")
    }


def as_shown(folder: Path) -> tuple[set[tuple[str, int]], dict[str, list[str]]]:
    """What TensorBoard shows of the folder's own files: scalars, and the names of media."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    tags = reader.Tags()
    scalars = {(tag, event.step) for tag in tags["scalars"] for event in reader.Scalars(tag)}
    return scalars, {kind: sorted(tags[kind]) for kind in ("images", "audio", "histograms")}


@pytest.fixture
def summary_writers() -> tuple[Path, Path]:
    """What both sides of the page have written: theirs, ours."""
    run("summarywriter.md", "# SummaryWriter")
    Path("logs").rename("theirs")
    run("summarywriter.md", OURS)
    return Path("theirs/digits"), Path("logs/digits")


def test_event_files_have_the_same_scalars(summary_writers: tuple[Path, Path]) -> None:
    theirs, ours = map(events, summary_writers)
    loss = {("loss/train", 4): pytest.approx(0.2), ("loss/val", 4): pytest.approx(0.3)}
    assert ours == theirs | loss  # of which add_scalars makes runs
    sub_runs = [summary_writers[0] / f"loss_{one}" for one in ("train", "val")]
    assert [list(events(folder)) for folder in sub_runs] == [[("loss", 4)]] * 2
    assert {("late", 50), ("late", 10), ("train/loss", 5)} <= ours.keys()


def test_tensorboard_shows_the_same_media_and_forgets_the_same(
    summary_writers: tuple[Path, Path],
) -> None:
    (their_scalars, theirs), (our_scalars, ours) = map(as_shown, summary_writers)
    assert (
        theirs
        == ours
        == {"images": ["batch", "sample"], "audio": ["sound"], "histograms": ["weights"]}
    )
    assert their_scalars <= our_scalars
    assert "late" not in {tag for tag, _ in their_scalars | our_scalars}
    assert ("train/loss", 4) in our_scalars


def test_tensorboardx_has_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorboardX
    import torch.utils.tensorboard

    number = itertools.count()  # it names files by the second, and would overwrite the first one

    def writer(*args: Any, **options: Any) -> Any:
        return tensorboardX.SummaryWriter(*args, filename_suffix=f".{next(number)}", **options)

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", writer)
    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_audio", Mock())  # it needs soundfile
    run("summarywriter.md", "# SummaryWriter")
    assert events(Path("logs/digits")).keys() >= {("train/loss", 0), ("val/acc", 4), ("late", 10)}


# W&B


def rows(folder: Path, step: str) -> tuple[Values, set[str]]:
    """The numbers of W&B's own history by name and step, and the names of its media."""
    numbers: Values = {}
    named: set[str] = set()
    for row in wandb_rows(folder):
        for name, value in row.items():
            if isinstance(value, dict):
                named.add(name)
            elif not name.startswith(("_", "metricbus/")):
                numbers[name, row[step]] = value
    return numbers, named


@pytest.fixture
def wandb_runs() -> tuple[Path, Path]:
    """The folders in which both sides of the page have left their W&B runs."""
    wandb.teardown()  # it would go on in the folder where this process first began a run
    run("wandb.md", "# wandb")
    return Path(), run("wandb.md", OURS)["bus"].folder


def test_wandb_has_the_same_values_and_ours_has_the_late_one_too(
    wandb_runs: tuple[Path, Path],
) -> None:
    theirs, their_media = rows(wandb_runs[0], "_step")
    ours, our_media = rows(wandb_runs[1], "metricbus/step")
    implied = {"tokens", "val/acc"}  # the step that each gives to a call without one
    assert {key: ours[key] for key in theirs if key[0] not in implied} == {
        key: value for key, value in theirs.items() if key[0] not in implied
    }
    assert ours.keys() - theirs.keys() == {("late", 10), ("tokens", 61), ("val/acc", 61)}
    assert their_media == our_media == {"weights", "sample", "errors"}


def test_of_a_step_that_comes_twice_wandb_keeps_the_last_and_ours_both(
    wandb_runs: tuple[Path, Path],
) -> None:
    theirs, ours = (
        [row["again"] for row in wandb_rows(folder) if "again" in row] for folder in wandb_runs
    )
    assert (theirs, ours) == ([2.0], [1.0, 2.0])


def test_wandb_has_the_same_config_and_axis(wandb_runs: tuple[Path, Path]) -> None:
    for folder in wandb_runs:
        config = wandb_config(folder)
        config.pop("_wandb", None)  # W&B's own part
        assert config == {"lr": 0.1, "optimizer": {"name": "sgd"}}
    (row,) = [row for row in wandb_rows(wandb_runs[1]) if "val/acc" in row]
    assert row["metricbus/x/tokens"] == 4096


# MLflow


def metrics(database: str) -> tuple[Values, dict[str, str], dict[str, str]]:
    """All points of the one run by key and step, its params and tags, by MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    points = {
        (key, point.step): point.value
        for key in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, key)
    }
    return points, found.data.params, found.data.tags | {"status": found.info.status}


@pytest.mark.usefixtures("mlflow_as_it_was")
def test_mlflow_has_the_same_metrics_and_params() -> None:
    make_template(Path())  # its tables take MLflow seconds to make
    for database in ("theirs.db", "ours.db"):
        shutil.copy("mlflow-empty.db", database)
    run("mlflow.md", "# mlflow")
    run("mlflow.md", OURS)
    theirs, their_params, their_tags = metrics("theirs.db")
    ours, our_params, our_tags = metrics("ours.db")
    assert math.isnan(theirs.pop(("nan", 0)))
    assert math.isnan(ours.pop(("nan", 0)))
    only_ours = {key: value for key, value in ours.items() if key not in theirs}
    assert ours == theirs | only_ours
    assert only_ours.pop(("mean_1", 0)) == 0.5
    assert our_tags["metricbus.name.mean_1"] == "mean@1"
    assert {key.split("/")[1] for key, _ in only_ours} == {"histogram"}
    assert their_params == our_params == {"lr": "0.1", "optimizer/name": "sgd"}
    assert their_tags["status"] == our_tags["status"] == "FINISHED"
    assert (their_tags["baseline"], our_tags["baseline"]) == ("yes", "true")
    assert json.loads(our_tags["mlflow.loggedArtifacts"])[0]["type"] == "table"


def test_mlflow_tries_a_server_as_often_as_the_page_says() -> None:
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
    history = metricbus.read(folder)
    return {
        (name, int(step), int(epoch)): value
        for name in history.names()
        for one in [history.series(name)]
        for step, epoch, value in zip(one.step, one.epoch, one.value, strict=True)
    }


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """What Lightning's side of the page leaves: the model, their logger, ours."""
    found = run("lightning.md", "# Lightning", "# the logger")
    yield found
    found["our_logger"].bus.close()


def test_the_logger_and_a_loop_of_ones_own_have_what_lightnings_logger_has(
    names: dict[str, Any],
) -> None:
    with open(Path(names["their_logger"].log_dir) / "metrics.csv", newline="") as lines:
        theirs = {
            (name, int(row["step"]), int(row["epoch"])): float(value)
            for row in csv.DictReader(lines)
            for name, value in row.items()
            if value and name not in ("step", "epoch")
        }
    assert series(names["our_logger"].bus.folder) == theirs
    assert dict(names["our_logger"].bus.config) == {"lr": 0.1}
    own = series(run("lightning.md", OURS)["bus"].folder)
    for (name, step, epoch), value in theirs.items():
        ours = own[name.removesuffix("_step"), step, epoch]
        assert ours == pytest.approx(value, rel=1e-4), (name, step)


@pytest.mark.filterwarnings("ignore")  # few workers, no validation: Lightning's
def test_the_logger_stays_open_for_a_test_and_fails_with_the_fit(names: dict[str, Any]) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    model_class: Any = names["Model"]
    steps = {"training_step": fail, "test_step": model_class.validation_step}
    logger, model = names["our_logger"], type("Failing", (model_class,), steps)()
    trainer = names["Trainer"](logger=logger, accelerator="cpu", enable_progress_bar=False)
    trainer.test(model, names["validation"], verbose=False)
    assert logger.bus.flush().complete
    assert series(logger.bus.folder).keys() >= {("val/loss", 0, 0)}
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model, names["training"])
    assert json.loads((logger.bus.folder / "run.json").read_text())["status"] == "failed"


# The words of the pages


@pytest.mark.parametrize("page", ["wandb.md", "mlflow.md", "../comparison.md"])
def test_what_a_page_says_of_a_library_is_there(page: str) -> None:
    """`wandb.Html`, `run.watch(...)`, `mlflow.log_dict`: names that the installed version has."""
    text = (PAGES / page).read_text()
    for library, attribute in set(re.findall(r"`(wandb|mlflow)\.(\w+)", text)):
        module = importlib.import_module(library)
        assert hasattr(module, attribute), f"{page}: {library}.{attribute}"
    for method in set(re.findall(r"`run\.(\w+)\(", text)):
        assert hasattr(importlib.import_module("wandb").Run, method), f"{page}: run.{method}"


def test_what_the_page_says_of_summary_writer_is_there() -> None:
    from torch.utils.tensorboard import SummaryWriter

    text = (PAGES / "summarywriter.md").read_text()
    called = set(re.findall(r"`(add_\w+)", text))
    assert len(called) > 10
    assert all(hasattr(SummaryWriter, name) for name in called)

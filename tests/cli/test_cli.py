"""The command line, as a person would run it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metricbus
from metricbus import MetricBus
from metricbus._common.media_records import MEDIA


def metricbus_command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metricbus", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_demo_trains_and_every_sink_has_everything(tmp_path: Path) -> None:
    done = metricbus_command("demo", "--epochs", "2", "--dir", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (path.parent for path in tmp_path.glob("*/run.json"))
    history = metricbus.read(folder)
    assert history.names() == [
        "train/loss",
        "train/accuracy",
        "train/learning_rate",
        "train/grad_norm",
        "time/epoch",
        "val/accuracy",
    ]
    loss = history.series("train/loss")
    assert loss.step.tolist() == [4, 9, 14, 19, 22, 27, 32, 37, 42, 45]  # means of 5 steps
    assert loss.value[-1] < loss.value[0] / 2, "it did not learn"
    assert history.series("val/accuracy").epoch.tolist() == [0, 1]
    kinds = {type(record).__name__ for record in history.media()}
    assert kinds == {kind.__name__ for kind in MEDIA}
    values = 44 + len(history.media())
    for sink in ("logging", "csv", "tensorboard", "wandb", "mlflow"):
        assert re.search(rf"{sink} +{values} +0 +0 +0", done.stdout), done.stdout
    assert f"tensorboard --logdir {folder}\n" in done.stdout
    assert f"wandb sync {folder}/wandb/offline-run-" in done.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in done.stdout
    assert "train/loss=" in done.stderr


def test_the_demo_says_what_is_wrong_with_its_sinks(tmp_path: Path) -> None:
    done = metricbus_command("demo", "--sinks", "cvs", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'csv'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_tells_what_is_in_force_and_masks_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "csv?include=http://me:hunter2@host")
    monkeypatch.setenv("COLUMNS", "200")
    done = metricbus_command("doctor")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "METRICBUS_SINKS" in line)
    assert "include=http://***@host" in row
    assert "environment" in row
    assert "hunter2" not in done.stdout


def test_the_doctor_names_a_variable_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_OVERFLOW", "explode")
    done = metricbus_command("doctor")
    assert done.returncode == 2
    assert "METRICBUS_OVERFLOW='explode'" in done.stderr


def test_the_doctor_finds_wrong_sinks_and_misspelled_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "cvs")
    monkeypatch.setenv("METRICBUS_SINK", "csv")
    done = metricbus_command("doctor")
    assert done.returncode == 1
    assert "no sink is called 'cvs'; did you mean 'csv'?" in done.stdout
    assert "METRICBUS_SINK is set, but there is no such setting; did you mean METRICBUS_SINKS?" in (
        done.stdout
    )


def test_sinks_are_listed() -> None:
    done = metricbus_command("sinks")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("csv", "logging", "mlflow", "tensorboard", "wandb"))


def test_the_doctor_tells_scripts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "cvs,csv?include=http://me:hunter2@host")
    done = metricbus_command("doctor", "--json")
    assert done.returncode == 1
    assert "hunter2" not in done.stdout
    told = json.loads(done.stdout)
    (sinks,) = (one for one in told["settings"] if one["variable"] == "METRICBUS_SINKS")
    assert (sinks["value"], sinks["from"]) == ("cvs,csv?include=http://***@host", "environment")
    assert len(told["problems"]) == 1


def test_scripts_are_told_which_sinks_are_ready() -> None:
    told = json.loads(metricbus_command("sinks", "--json").stdout)
    assert {"csv", "logging"} <= {one["sink"] for one in told if one["ready"] is True}


def test_scripts_are_told_what_deliver_has_delivered(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path, id="r") as bus:
        bus.log("loss", 0.5)
    done = metricbus_command("deliver", str(tmp_path / "r"), "--sinks", "csv", "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert told["folder"] == str(tmp_path / "r")
    assert told["sinks"]["csv"]["delivered"] == 1
    assert told["sinks"]["csv"]["pending"] == 0


def test_the_version_is_told() -> None:
    assert metricbus_command("--version").stdout.strip() == metricbus.__version__


@pytest.mark.parametrize("command", ["demo", "doctor", "sinks"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = metricbus_command(command, "--help")
    assert f"metricbus {command}" in done.stdout
    assert "Example:" in done.stdout


def test_without_typer_it_says_which_extra_has_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "import metricbus._cli as cli\n"
        "cli.find_spec = lambda name: None if name == 'typer' else object()\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "needs typer: pip install 'metricbus[cli]'" in done.stderr


def test_deliver_to_logging_shows_the_lines(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("loss", 0.5)
    done = metricbus_command("deliver", str(tmp_path / "r"), "--sinks", "logging", cwd=tmp_path)
    assert "step 0 epoch 0 | loss=0.5" in done.stderr


@pytest.mark.parametrize("command", ["doctor", "sinks", "deliver"])
def test_tables_are_plain_and_fit_into_40_columns(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("loss", 0.5)
    more = [str(tmp_path / "r"), "--sinks", "csv"] if command == "deliver" else []
    lines = metricbus_command(command, *more, cwd=tmp_path).stdout.splitlines()
    assert not set("".join(lines)) & set("│┃┏└")
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 40
    assert all(line == line.rstrip() for line in lines)

"""The commands `demo`, `doctor`, `sinks` and `deliver`, run as separate processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metricbus
from metricbus import MetricBus
from metricbus._common.media_records import MEDIA_RECORD_TYPES
from tests.helpers.limits import HANG_SECS


def metricbus_command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metricbus", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )


def test_demo_trains_and_delivers_everything_to_every_sink(tmp_path: Path) -> None:
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
    assert loss.value[-1] < loss.value[0] / 2, "the loss did not decrease"
    assert history.series("val/accuracy").epoch.tolist() == [0, 1]
    kinds = {type(record).__name__ for record in history.media()}
    assert kinds == {kind.__name__ for kind in MEDIA_RECORD_TYPES}
    values = 44 + len(history.media())
    logged = re.search(
        r"^Logged (\d+) values, \d+ of them reduced to \d+\. Written to:$", done.stdout, re.M
    )
    assert logged, done.stdout
    for sink in ("logging", "csv", "tensorboard", "wandb", "mlflow"):
        assert re.search(rf"{sink} +{values} +0 +0 +0", done.stdout), done.stdout
    assert f"tensorboard --logdir {folder}\n" in done.stdout
    assert f"wandb sync {folder}/wandb/offline-run-" in done.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in done.stdout
    assert "train/loss=" in done.stderr


def test_demo_reports_an_invalid_sink(tmp_path: Path) -> None:
    done = metricbus_command("demo", "--sinks", "cvs", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'csv'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_prints_effective_settings_and_masks_secrets(
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


def test_doctor_names_a_variable_with_an_invalid_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_OVERFLOW", "explode")
    done = metricbus_command("doctor")
    assert done.returncode == 2
    assert "METRICBUS_OVERFLOW='explode'" in done.stderr


def test_doctor_reports_invalid_sinks_and_misspelled_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "cvs")
    monkeypatch.setenv("METRICBUS_SINK", "csv")
    done = metricbus_command("doctor")
    assert done.returncode == 1
    assert "unknown sink 'cvs'; did you mean 'csv'?" in done.stdout
    assert (
        "METRICBUS_SINK is set, but there is no such setting; did you mean 'METRICBUS_SINKS'?"
        in (done.stdout)
    )


def test_sinks_lists_all_sinks() -> None:
    done = metricbus_command("sinks")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("csv", "logging", "mlflow", "tensorboard", "wandb"))


def test_doctor_prints_settings_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "cvs,csv?include=http://me:hunter2@host")
    done = metricbus_command("doctor", "--json")
    assert done.returncode == 1
    assert "hunter2" not in done.stdout
    result = json.loads(done.stdout)
    (sinks,) = (entry for entry in result["settings"] if entry["variable"] == "METRICBUS_SINKS")
    assert (sinks["value"], sinks["from"]) == ("cvs,csv?include=http://***@host", "environment")
    assert len(result["problems"]) == 1


def test_sinks_prints_which_are_ready_as_json() -> None:
    result = json.loads(metricbus_command("sinks", "--json").stdout)
    assert {"csv", "logging"} <= {entry["sink"] for entry in result if entry["ready"] is True}


def test_deliver_prints_counts_as_json(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path, id="r") as bus:
        bus.log("loss", 0.5)
    done = metricbus_command("deliver", str(tmp_path / "r"), "--sinks", "csv", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["folder"] == str(tmp_path / "r")
    assert result["sinks"]["csv"]["delivered"] == 1
    assert result["sinks"]["csv"]["pending"] == 0


def test_prints_the_version() -> None:
    assert metricbus_command("--version").stdout.strip() == metricbus.__version__


@pytest.mark.parametrize("command", ["demo", "doctor", "sinks"])
def test_help_has_an_example(command: str) -> None:
    done = metricbus_command(command, "--help")
    assert f"metricbus {command}" in done.stdout
    assert "Example:" in done.stdout


def test_names_the_extra_if_typer_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "import metricbus._cli as cli\n"
        "cli.find_spec = lambda name: None if name == 'typer' else object()\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECS, check=False
    )
    assert done.returncode == 2
    assert "needs typer: pip install 'metricbus[cli]'" in done.stderr


def test_deliver_to_logging_prints_the_lines(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("loss", 0.5)
    done = metricbus_command("deliver", str(tmp_path / "r"), "--sinks", "logging", cwd=tmp_path)
    assert "step 0 epoch 0 | loss=0.5" in done.stderr


@pytest.mark.parametrize("command", ["doctor", "sinks", "deliver"])
def test_tables_have_no_borders_and_fit_into_40_columns(
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

"""`metricbus ls`, as a person would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metricbus import Histogram, MetricBus
from metricbus._cli.app import app
from metricbus.testing import MemorySink


def ls(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ls", *arguments])


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = ls(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    entries: list[dict[str, Any]] = json.loads(done.stdout)
    return entries


def ids(*arguments: str) -> list[str]:
    return [Path(entry["folder"]).name for entry in listed(*arguments)]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """Three runs, the last of them live."""
    folder = tmp_path / "runs"
    with MetricBus(id="a-1", run="digits", sinks="csv", dir=folder, tags=["old", "big"]) as bus:
        for step in range(30):
            bus.log("loss", 1 / (step + 1), step=step)
    with pytest.raises(ZeroDivisionError), MetricBus(id="b-2", run="words", sinks="", dir=folder):
        _ = 1 / 0
    live = MetricBus(id="c-3", run="digits", sinks=[MemorySink()], dir=folder, tags=["old"])
    live.log({"loss": 0.25, "acc": 0.5, "x": 1, "val/f1": 0.125}, step=5)
    live.flush()
    yield folder
    live.close()


def test_the_newest_run_stands_first_with_all_that_matters(runs: Path) -> None:
    lines = ls(str(runs)).stdout.splitlines()
    assert lines[0].split() == ["run", "status", "age", "step", "values", "last", "delivery"]
    assert [line.split()[0] for line in lines[2:]] == ["c-3", "b-2", "a-1"]
    assert "running" in lines[2]
    assert "loss 0.25, acc 0.5, x 1 and 1 more" in lines[2]
    assert "failed" in lines[3]
    assert lines[4].split()[-1] == "all"


def test_without_a_folder_the_runs_are_those_of_the_settings(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(listed()) == 3, "the folder `runs` beside which it is run"
    monkeypatch.setenv("METRICBUS_DIR", "elsewhere")
    assert "there is no folder elsewhere" in ls().stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sort", "name"], ["a-1", "c-3", "b-2"]),
        (["--sort", "steps"], ["a-1", "c-3", "b-2"]),
        (["--sort", "values"], ["a-1", "c-3", "b-2"]),
        (["--sort", "status"], ["b-2", "a-1", "c-3"]),
        (["--reverse"], ["a-1", "b-2", "c-3"]),
        (["--limit", "1"], ["c-3"]),
        (["--status", "failed", "--status", "running"], ["c-3", "b-2"]),
        (["--name", "dig*"], ["c-3", "a-1"]),
        (["--name", "b-*"], ["b-2"]),
        (["--tag", "old"], ["c-3", "a-1"]),
        (["--tag", "old", "--tag", "big"], ["a-1"]),
    ],
)
def test_runs_are_sorted_and_filtered(
    runs: Path, arguments: list[str], expected: list[str]
) -> None:
    assert ids(str(runs), *arguments) == expected


def test_json_has_what_a_script_wants(runs: Path) -> None:
    (entry,) = listed(str(runs), "--name", "a-1")
    assert (entry["status"], entry["step"], entry["values"]) == ("finished", 29, 30)
    assert entry["values_are_exact"] is True
    assert entry["last"] == {"loss": 1 / 30}
    (sink,) = entry["sinks"]
    assert (sink["sink"], sink["delivered"], sink["share"]) == ("csv", 30, 1.0)


def test_the_step_is_the_largest_though_an_earlier_one_was_logged_last(tmp_path: Path) -> None:
    with MetricBus(id="late", sinks="", dir=tmp_path) as bus:
        for step in range(100):
            bus.log("loss", 1 / (step + 1), step=step)
        bus.log("val/acc", 0.5, step=50)
    with MetricBus(id="short", sinks="", dir=tmp_path) as bus:
        bus.log("loss", 0.5, step=60)
        bus.log("weights", Histogram([1.0, 2.0]), step=20)
    steps = {entry["id"]: entry["step"] for entry in listed(str(tmp_path))}
    assert steps == {"late": 99, "short": 60}
    assert ids(str(tmp_path), "--sort", "steps") == ["late", "short"]
    late = next(line for line in ls(str(tmp_path)).stdout.splitlines() if line.startswith("late"))
    assert "99" in late.split()


def test_the_last_values_can_be_chosen(runs: Path) -> None:
    done = ls(str(runs), "--name", "c-3", "--values", "val/*")
    assert "val/f1 0.125" in done.stdout
    assert "loss" not in done.stdout


def test_a_sink_that_is_behind_is_named_with_its_share(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
    file = tmp_path / "r" / "run.json"
    file.write_text(file.read_text().replace('"sinks": []', '"sinks": ["csv","mlflow"]'))
    assert ls(str(tmp_path)).stdout.splitlines()[-1].endswith("csv 0%, mlflow 0%")


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(runs: Path) -> None:
    (runs / "b-2" / "run.json").write_text("{")
    line = next(line for line in ls(str(runs)).stdout.splitlines() if line.startswith("b-2"))
    assert "unreadable" in line
    assert "run.json cannot be read" in line
    assert ids(str(runs), "--status", "unreadable") == ["b-2"]


def test_a_run_without_permission_is_listed_with_the_reason(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "journal")

    monkeypatch.setattr("metricbus._cli.ls.glance", refuse)
    (entry,) = listed(str(runs), "--name", "a-1")
    assert (entry["status"], entry["problem"]) == ("unreadable", "journal: Permission denied")


def test_a_torn_journal_is_listed_like_any_other(runs: Path) -> None:
    segment = runs / "a-1" / "journal" / "0001.jsonl"
    segment.write_bytes(segment.read_bytes()[:-100])
    assert listed(str(runs), "--name", "a-1")[0]["last"]["loss"] == pytest.approx(1 / 30, rel=0.1)


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    done = ls(str(tmp_path))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no run in" in done.stderr
    assert listed(str(tmp_path)) == []


def test_filters_that_leave_nothing_say_so(runs: Path) -> None:
    assert "no run that is wanted" in ls(str(runs), "--tag", "none").stderr


def test_a_missing_folder_and_a_file_are_misuse(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for given in ("nowhere", "file"):
        done = ls(str(tmp_path / given))
        assert done.exit_code == 2
        assert given in done.stderr
        assert "Traceback" not in done.stderr


def test_the_folder_of_one_run_is_taken_for_itself(runs: Path) -> None:
    assert ids(str(runs / "a-1")) == ["a-1"]


def test_at_40_columns_the_least_is_left_out_and_no_line_is_longer(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = ls(str(runs)).stdout.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0].split()[:2] == ["run", "status"]


@pytest.fixture
def long_id(tmp_path: Path) -> str:
    """A run with an id as they are made, of a name that is not short."""
    name = "resnet50-baseline-20261122-061500-abc"
    with MetricBus(id=name, sinks="csv", dir=tmp_path) as bus:
        bus.log({"train/loss": 0.25, "val/acc": 0.5}, step=1234)
    return name


def test_at_80_columns_the_last_value_stands_beside_a_long_id(
    long_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = ls(str(tmp_path)).stdout.splitlines()
    assert lines[0].split() == ["run", "status", "age", "step", "last"]
    assert lines[2].startswith(f"{long_id}  finished")
    assert "train/loss 0.25" in " ".join(lines[2].split())
    assert max(map(len, lines)) <= 80


def test_at_80_columns_the_reason_stands_beside_a_run_that_cannot_be_read(
    long_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / long_id / "run.json").write_text("{")
    assert "cannot be read" in " ".join(ls(str(tmp_path)).stdout.split())


@pytest.mark.parametrize("width", [80, 60, 40])
def test_values_that_are_asked_for_stay_the_longest(
    width: int, long_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = ls(str(tmp_path), "--values", "val/*").stdout.splitlines()
    assert "val/acc 0.5" in lines[2]
    assert (long_id in lines[2]) == (width == 80), "beyond half of the width it is folded"
    assert max(map(len, lines)) <= width


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("\x1b[2Jgone\n[red]x", 1)
    done = ls(str(tmp_path))
    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jgone\\n[red]x 1" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_closed_pipe_ends_it_quietly(runs: Path) -> None:
    command = f"{sys.executable} -m metricbus ls {runs} | true"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=60, check=False)
    assert done.stderr == b""


def test_help_has_an_example() -> None:
    assert "Example: metricbus ls" in ls("--help").stdout

"""The command `metricbus ls`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from metricbus import Histogram, MetricBus
from metricbus.testing import MemorySink
from tests.helpers.cli_runs import invoke, invoke_json
from tests.helpers.limits import HANG_SECS


def ls(*arguments: str) -> Result:
    return invoke("ls", *arguments)


def ls_json(*arguments: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = invoke_json("ls", *arguments)
    return entries


def listed_ids(*arguments: str) -> list[str]:
    return [Path(entry["folder"]).name for entry in ls_json(*arguments)]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """Three runs, the last of them live."""
    folder = tmp_path / "runs"
    with MetricBus(id="a-1", name="digits", sinks="csv", dir=folder, tags=["old", "big"]) as bus:
        for step in range(30):
            bus.log("loss", 1 / (step + 1), step=step)
    with pytest.raises(ZeroDivisionError), MetricBus(id="b-2", name="words", sinks="", dir=folder):
        _ = 1 / 0
    live = MetricBus(id="c-3", name="digits", sinks=[MemorySink()], dir=folder, tags=["old"])
    live.log({"loss": 0.25, "acc": 0.5, "x": 1, "val/f1": 0.125}, step=5)
    live.flush()
    yield folder
    live.close()


def test_lists_the_newest_run_first(runs: Path) -> None:
    lines = ls(str(runs)).stdout.splitlines()
    assert lines[0].split() == ["run", "status", "age", "step", "values", "last", "delivery"]
    assert [line.split()[0] for line in lines[2:]] == ["c-3", "b-2", "a-1"]
    assert "running" in lines[2]
    assert "loss 0.25, acc 0.5, x 1 and 1 more" in lines[2]
    assert "failed" in lines[3]
    assert lines[4].split()[-1] == "all"


def test_without_a_folder_lists_the_runs_of_the_settings(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(ls_json()) == 3, "the folder `runs` in the working directory"
    monkeypatch.setenv("METRICBUS_DIR", "elsewhere")
    assert "There is no folder elsewhere." in ls().stderr


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
def test_sorts_and_filters_runs(runs: Path, arguments: list[str], expected: list[str]) -> None:
    assert listed_ids(str(runs), *arguments) == expected


def test_rejects_an_unknown_sort_key(runs: Path) -> None:
    done = ls(str(runs), "--sort", "val/acc")
    assert done.exit_code == 2
    message = " ".join(done.stderr.replace("│", " ").split())
    assert (
        "Cannot sort by 'val/acc'. Sort by one of: started, name, steps, values, status." in message
    )


def test_json_has_all_details(runs: Path) -> None:
    (entry,) = ls_json(str(runs), "--name", "a-1")
    assert (entry["status"], entry["step"], entry["values"]) == ("finished", 29, 30)
    assert entry["last"] == {"loss": 1 / 30}
    (sink,) = entry["sinks"]
    assert (sink["sink"], sink["delivered"], sink["share"]) == ("csv", 30, 1.0)


def test_shows_the_largest_step_even_if_a_smaller_one_was_logged_last(tmp_path: Path) -> None:
    with MetricBus(id="late", sinks="", dir=tmp_path) as bus:
        for step in range(100):
            bus.log("loss", 1 / (step + 1), step=step)
        bus.log("val/acc", 0.5, step=50)
    with MetricBus(id="short", sinks="", dir=tmp_path) as bus:
        bus.log("loss", 0.5, step=60)
        bus.log("weights", Histogram([1.0, 2.0]), step=20)
    steps = {entry["id"]: entry["step"] for entry in ls_json(str(tmp_path))}
    assert steps == {"late": 99, "short": 60}
    assert listed_ids(str(tmp_path), "--sort", "steps") == ["late", "short"]
    late = next(line for line in ls(str(tmp_path)).stdout.splitlines() if line.startswith("late"))
    assert "99" in late.split()


def test_values_selects_the_last_values(runs: Path) -> None:
    done = ls(str(runs), "--name", "c-3", "--values", "val/*")
    assert "val/f1 0.125" in done.stdout
    assert "loss" not in done.stdout


def test_values_selects_final_values_too(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.define("acc", best="max")
        bus.log("acc", 0.75, step=0)
        bus.log("acc", 0.5, step=1)
        bus.summarize("test/acc", 0.625)
    line = ls(str(tmp_path), "--values", "*/acc").stdout.splitlines()[-1]
    assert "test/acc 0.625" in line
    assert "best/acc 0.75" in line


def test_names_incomplete_sinks_with_their_share(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
    file = tmp_path / "r" / "run.json"
    file.write_text(file.read_text().replace('"sinks": []', '"sinks": ["csv","mlflow"]'))
    assert ls(str(tmp_path)).stdout.splitlines()[-1].endswith("csv 0%, mlflow 0%")


def test_lists_an_unreadable_run_with_the_reason(runs: Path) -> None:
    (runs / "b-2" / "run.json").write_text("{")
    line = next(line for line in ls(str(runs)).stdout.splitlines() if line.startswith("b-2"))
    assert "unreadable" in line
    assert "run.json cannot be read" in line
    assert listed_ids(str(runs), "--status", "unreadable") == ["b-2"]


def test_lists_a_run_without_permission_with_the_reason(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "journal")

    monkeypatch.setattr("metricbus._cli.ls.read_details", refuse)
    (entry,) = ls_json(str(runs), "--name", "a-1")
    assert (entry["status"], entry["problem"]) == ("unreadable", "journal: Permission denied")


def test_lists_a_run_with_a_torn_journal(runs: Path) -> None:
    segment = runs / "a-1" / "journal" / "0001.jsonl"
    segment.write_bytes(segment.read_bytes()[:-100])
    assert ls_json(str(runs), "--name", "a-1")[0]["last"]["loss"] == pytest.approx(1 / 30, rel=0.1)


def test_an_empty_folder_is_not_an_error(tmp_path: Path) -> None:
    done = ls(str(tmp_path))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no runs in" in done.stderr
    assert ls_json(str(tmp_path)) == []


def test_reports_filters_without_a_match(runs: Path) -> None:
    assert "no runs that match the filters" in ls(str(runs), "--tag", "none").stderr


def test_rejects_a_missing_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        done = ls(str(tmp_path / name))
        assert done.exit_code == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_lists_a_single_run_given_its_folder(runs: Path) -> None:
    assert listed_ids(str(runs / "a-1")) == ["a-1"]


def test_omits_less_important_columns_at_40_columns(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = ls(str(runs)).stdout.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0].split()[:2] == ["run", "status"]


@pytest.fixture
def long_id(tmp_path: Path) -> str:
    """A run with a long name and a generated id."""
    name = "resnet50-baseline-20261122-061500-abc"
    with MetricBus(id=name, sinks="csv", dir=tmp_path) as bus:
        bus.log({"train/loss": 0.25, "val/acc": 0.5}, step=1234)
    return name


def test_shows_the_last_value_next_to_a_long_id_at_80_columns(
    long_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = ls(str(tmp_path)).stdout.splitlines()
    assert lines[0].split() == ["run", "status", "age", "step", "last"]
    assert lines[2].startswith(f"{long_id}  finished")
    assert "train/loss 0.25" in " ".join(lines[2].split())
    assert max(map(len, lines)) <= 80


def test_shows_the_reason_next_to_an_unreadable_run_at_80_columns(
    long_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / long_id / "run.json").write_text("{")
    assert "cannot be read" in " ".join(ls(str(tmp_path)).stdout.split())


@pytest.mark.parametrize("width", [80, 60, 40])
def test_keeps_requested_values_in_narrow_terminals(
    width: int, long_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = ls(str(tmp_path), "--values", "val/*").stdout.splitlines()
    assert "val/acc 0.5" in lines[2]
    assert (long_id in lines[2]) == (width == 80), "an id wider than half the terminal is wrapped"
    assert max(map(len, lines)) <= width


def test_names_cannot_control_the_terminal(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("\x1b[2Jgone\n[red]x", 1)
    done = ls(str(tmp_path))
    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jgone\\n[red]x 1" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_exits_quietly_when_the_pipe_is_closed(runs: Path) -> None:
    command = f"{sys.executable} -m metricbus ls {runs} | true"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=HANG_SECS, check=False)
    assert done.stderr == b""


def test_help_has_an_example() -> None:
    assert "Example: metricbus ls" in ls("--help").stdout

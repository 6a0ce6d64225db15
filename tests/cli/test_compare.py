"""`metricbus compare`, as a person would run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metricbus import MetricBus
from metricbus._cli.app import app


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    done = compare(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for name, lr, values in (("base", 0.1, [0.5, 0.9, 0.8]), ("wide", 0.2, [0.5, 0.7, 0.95])):
        config = {"lr": lr, "model": {"layers": 3}} | ({"extra": 1} if name == "wide" else {})
        with MetricBus(id=f"{name}-1", run=name, sinks="", dir=folder, config=config) as bus:
            for step, value in enumerate(values):
                bus.log({"val/acc": value, f"only/{name}": step}, step=step)
    return folder


def cells(done: Result, start: str) -> list[str]:
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(start))
    return line.split()


def test_configs_that_differ_and_last_values_stand_side_by_side(runs: Path) -> None:
    done = compare("base-1", "wide-1")
    assert done.exit_code == 0, done.stderr
    assert cells(done, "config") == ["config", "base", "wide"]
    assert cells(done, "lr") == ["lr", "0.1", "0.2"]
    assert cells(done, "extra") == ["extra", "-", "1"]
    assert "model/layers" not in done.stdout
    assert cells(done, "val/acc") == ["val/acc", "0.8", "0.95", "(+0.15)"]
    assert cells(done, "only/wide") == ["only/wide", "-", "2"]


def test_what_is_the_same_in_the_configs_comes_on_demand(runs: Path) -> None:
    assert cells(compare("base-1", "wide-1", "--all"), "model/layers") == ["model/layers", "3", "3"]


@pytest.mark.parametrize(
    ("by", "values"), [("last", [0.8, 0.95]), ("max", [0.9, 0.95]), ("min", [0.5, 0.5])]
)
def test_least_and_greatest_values_can_be_compared(
    runs: Path, by: str, values: list[float]
) -> None:
    found = as_json("base-1", "wide-1", "--by", by)
    assert found["series"]["val/acc"]["values"] == values
    assert found["by"] == by


def test_deltas_are_to_the_first_run(runs: Path) -> None:
    found = as_json("wide-1", "base-1", "--name", "*acc")
    assert list(found["series"]) == ["val/acc"]
    assert found["series"]["val/acc"]["deltas"] == [0.0, pytest.approx(-0.15)]
    assert found["config"] == {"lr": [0.2, 0.1], "extra": [1, None]}


def test_runs_of_one_name_go_by_their_ids(runs: Path) -> None:
    with MetricBus(id="base-2", run="base", sinks="", dir=runs, config={}):
        pass
    assert cells(compare("base-1", "base-2"), "config") == ["config", "base-1", "base-2"]


def test_configs_that_do_not_differ_are_told(runs: Path) -> None:
    assert "the configs do not differ" in compare("base-1", "base-1").stdout


def test_one_run_is_not_enough(runs: Path) -> None:
    done = compare("base-1")
    assert done.exit_code == 2
    assert "two runs or more" in done.stderr


def test_an_unknown_name_suggests_the_nearest(runs: Path) -> None:
    done = compare("base-1", "wide-1", "--name", "val/ac")
    assert done.exit_code == 2
    assert "did you mean val/acc?" in done.stderr


def test_at_40_columns_the_runs_stand_below_each_other_if_they_must(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    done = compare("base-1", "wide-1", "base-1")
    assert max(map(len, done.stdout.splitlines())) <= 30
    assert "  wide-1: 0.95 (+0.15)" in done.stdout


def test_help_has_an_example() -> None:
    assert "Example: metricbus compare" in compare("--help").stdout

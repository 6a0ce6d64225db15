"""The command `metricbus compare`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import Result

from metricbus import MetricBus
from tests.helpers.cli_runs import invoke, invoke_json


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


def test_shows_config_differences_and_last_values_side_by_side(runs: Path) -> None:
    done = invoke("compare", "base-1", "wide-1")
    assert done.exit_code == 0, done.stderr
    assert cells(done, "config") == ["config", "base", "wide"]
    assert cells(done, "lr") == ["lr", "0.1", "0.2"]
    assert cells(done, "extra") == ["extra", "-", "1"]
    assert "model/layers" not in done.stdout
    assert cells(done, "val/acc") == ["val/acc", "0.8", "0.95", "(+0.15)"]
    assert cells(done, "only/wide") == ["only/wide", "-", "2"]


def test_all_shows_equal_config_values_too(runs: Path) -> None:
    assert cells(invoke("compare", "base-1", "wide-1", "--all"), "model/layers") == [
        "model/layers",
        "3",
        "3",
    ]


@pytest.mark.parametrize(
    ("by", "values"), [("last", [0.8, 0.95]), ("max", [0.9, 0.95]), ("min", [0.5, 0.5])]
)
def test_by_selects_the_compared_value(runs: Path, by: str, values: list[float]) -> None:
    result = invoke_json("compare", "base-1", "wide-1", "--by", by)
    assert result["series"]["val/acc"]["values"] == values
    assert result["by"] == by


def test_deltas_are_relative_to_the_first_run(runs: Path) -> None:
    result = invoke_json("compare", "wide-1", "base-1", "--name", "*acc")
    assert list(result["series"]) == ["val/acc"]
    assert result["series"]["val/acc"]["deltas"] == [0.0, pytest.approx(-0.15)]
    assert result["config"] == {"lr": [0.2, 0.1], "extra": [1, None]}


def test_final_values_are_compared(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.5), ("b", 0.75)):
        with MetricBus(id=name, sinks="", dir=tmp_path / "runs") as bus:
            bus.summarize("test/acc", accuracy)
    result = invoke_json("compare", "a", "b")
    assert result["series"] == {"test/acc": {"values": [0.5, 0.75], "deltas": [0.0, 0.25]}}


def test_runs_with_the_same_name_are_labeled_with_their_ids(runs: Path) -> None:
    with MetricBus(id="base-2", name="base", sinks="", dir=runs, config={}):
        pass
    assert cells(invoke("compare", "base-1", "base-2"), "config") == ["config", "base-1", "base-2"]


def test_reports_equal_configs(runs: Path) -> None:
    assert "The configs do not differ." in invoke("compare", "base-1", "base-1").stdout


def test_rejects_a_single_run(runs: Path) -> None:
    done = invoke("compare", "base-1")
    assert done.exit_code == 2
    assert "Give two runs or more" in done.stderr


def test_an_unknown_name_suggests_a_similar_one(runs: Path) -> None:
    done = invoke("compare", "base-1", "wide-1", "--name", "val/ac")
    assert done.exit_code == 2
    assert "Did you mean 'val/acc'?" in done.stderr


def test_lists_runs_below_each_other_if_the_columns_do_not_fit(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    done = invoke("compare", "base-1", "wide-1", "base-1")
    assert max(map(len, done.stdout.splitlines())) <= 30
    assert "  wide-1: 0.95 (+0.15)" in done.stdout


def test_help_has_an_example() -> None:
    assert "Example: metricbus compare" in invoke("compare", "--help").stdout

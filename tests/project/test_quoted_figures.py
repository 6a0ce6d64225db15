"""What the README says of costs is what the benchmarks have seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.harness import Result, ratio
from benchmarks.results import load

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = [
    result for case in load(ROOT / "docs/benchmarks/results.json") for result in case.results
]

CALLS = {
    "a bare `deque.append`": "deque.append((name, value, step))",
    "a Python method that reads the clock and appends": "a method with time_ns() and append",
    "Lightning's `CSVLogger`": "Lightning CSVLogger",
    "trackio": "trackio.log",
    "`logging.info` to a file": "logging.info",
    "CLU's `write_scalars`": "CLU write_scalars",
    "`SummaryWriter.add_scalar`": "SummaryWriter.add_scalar",
    "`wandb.Run.log`, offline": "wandb Run.log",
    "`mlflow.log_metric`, SQLite": "mlflow log_metric, sqlite",
    "`mlflow.log_metric`, a server": "mlflow log_metric, server",
}
"""What the README calls an arm, and what the results call it."""


def result_of(id: str) -> Result:
    (found,) = (result for result in RESULTS if result.id == id)
    return found


def range_told(name: str) -> tuple[float, float]:
    (told,) = re.findall(
        rf"^\| {re.escape(name)} \| ([\d.,]+) to ([\d.,]+) \|$", README, re.MULTILINE
    )
    low, high = (float(text.replace(",", "")) for text in told)
    return low, high


@pytest.mark.parametrize("name", CALLS)
def test_the_range_of_a_call_has_the_last_run_in_it(name: str) -> None:
    calls = result_of("calls")
    by_name = {figure.name: figure for figure in calls.figures}
    low, high = range_told(name)
    seen = ratio(by_name[CALLS[name]], by_name["log(name, value, step=)"])
    assert low * 0.97 <= seen <= high * 1.03  # they are rounded


def test_the_targets_are_counted() -> None:
    (told,) = re.findall(r"(\d+) targets of which (\d+) are missed", README)
    targets = [target for result in RESULTS for target in result.targets]
    missed = [target for target in targets if not target.met]
    assert tuple(map(int, told)) == (len(targets), len(missed))

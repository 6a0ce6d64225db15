"""The figures quoted in the docs match the stored benchmark results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.framework.harness import Result, ratio
from benchmarks.framework.results import load

ROOT = Path(__file__).parents[2]
COMPARISON = (ROOT / "docs" / "comparison.md").read_text()
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
"""Maps the name of a call in the cost table to its name in the results."""


def result_by_id(id: str) -> Result:
    (matching,) = (result for result in RESULTS if result.id == id)
    return matching


def quoted_range(name: str) -> tuple[float, float]:
    (quoted,) = re.findall(
        rf"^\| {re.escape(name)} \| ([\d.,]+) to ([\d.,]+) \|$", COMPARISON, re.MULTILINE
    )
    low, high = (float(text.replace(",", "")) for text in quoted)
    return low, high


@pytest.mark.parametrize("name", CALLS)
def test_a_quoted_range_includes_the_stored_result(name: str) -> None:
    calls = result_by_id("calls")
    by_name = {figure.name: figure for figure in calls.figures}
    low, high = quoted_range(name)
    measured = ratio(by_name[CALLS[name]], by_name["log(name, value, step=)"])
    assert low * 0.97 <= measured <= high * 1.03  # quoted values are rounded


def test_the_quoted_target_counts_match_the_results() -> None:
    (quoted,) = re.findall(r"(\d+) targets of which (\d+) are missed", COMPARISON)
    targets = [target for result in RESULTS for target in result.targets]
    missed = [target for target in targets if not target.met]
    assert tuple(map(int, quoted)) == (len(targets), len(missed))

"""Where metricbus's own sinks write in a benchmark, and whether all is there.

All runs of a bus lie in one folder, `place`; so does what they have in common.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.workloads import reading
from benchmarks.workloads.ours import log_file

LOG = "metricbus.log"
DATABASE = "mlflow.db"
LATEST_SECS = 10.0


def lines_in(place: Path) -> AbstractContextManager[None]:
    """Has what metricbus logs for people in a file, and not on the terminal."""
    return log_file(place / LOG)


def complete(name: str, count: Callable[[], int], logged: int) -> str:
    """`20,000 of 20,000`; raises if it does not come to that.

    W&B's own process may write its last rows a moment after it has said that the run has ended.
    """
    deadline = time.monotonic() + LATEST_SECS
    while (found := count()) < logged and time.monotonic() < deadline:
        time.sleep(0.1)
    return reading.complete(name, found, logged)


VALUES: Mapping[str, Callable[[Path], int]] = {
    "logging": lambda place: reading.log_values(place / LOG),
    "csv": lambda place: sum(map(reading.tidy_csv_values, place.glob("*/csv/metrics.csv"))),
    "tensorboard": lambda place: sum(map(reading.tensorboard_values, place.glob("*/tensorboard"))),
    "wandb": lambda place: sum(map(reading.wandb_values, place.glob("*/wandb"))),
    "mlflow": lambda place: reading.mlflow_values(f"sqlite:///{place / DATABASE}"),
}
"""Values that all runs in a place have brought into a backend, by its own reader."""

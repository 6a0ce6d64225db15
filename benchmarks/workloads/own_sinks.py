"""Output locations of metricbus's sinks in a benchmark, and a check that they are complete.

All runs of a bus are in one folder, together with their shared log file and database.
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
RETRY_SECS = 10.0


def lines_in(folder: Path) -> AbstractContextManager[None]:
    """Redirect metricbus's log lines to a file in this folder."""
    return log_file(folder / LOG)


def complete(name: str, count: Callable[[], int], logged: int) -> str:
    """Return a text such as `20,000 of 20,000`; raise if the counts differ.

    W&B's process may write its last rows shortly after it has reported the end of the run, so the
    backend is read again for up to `RETRY_SECS`.
    """
    deadline = time.monotonic() + RETRY_SECS
    while (found := count()) < logged and time.monotonic() < deadline:
        time.sleep(0.1)
    return reading.complete(name, found, logged)


VALUES: Mapping[str, Callable[[Path], int]] = {
    "logging": lambda runs: reading.log_values(runs / LOG),
    "csv": lambda runs: sum(map(reading.tidy_csv_values, runs.glob("*/csv/metrics.csv"))),
    "tensorboard": lambda runs: sum(map(reading.tensorboard_values, runs.glob("*/tensorboard"))),
    "wandb": lambda runs: sum(map(reading.wandb_values, runs.glob("*/wandb"))),
    "mlflow": lambda runs: reading.mlflow_values(f"sqlite:///{runs / DATABASE}"),
}
"""For each backend, a function that counts the values of all runs in a folder."""

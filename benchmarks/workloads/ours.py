"""Runs of metricbus with all five sinks or some of them, and counts of what each contains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.services import empty_database
from benchmarks.workloads.reading import (
    journal_values,
    log_values,
    mlflow_values,
    tensorboard_values,
    tidy_csv_values,
    wandb_values,
)

if TYPE_CHECKING:
    from metricbus import MetricBus

SINKS = ("logging", "csv", "tensorboard", "wandb?mode=offline", "mlflow")
ALL = ",".join(SINKS)
RUN = "run"  # the run id, which is also the name of the run folder
LOG = "log.txt"
TIMEOUT_SECS = 120.0  # seconds for delivery

_DATABASE = "mlflow.db"


@contextmanager
def opened_bus(folder: Path, sinks: str, **settings: Any) -> Iterator[MetricBus]:
    """Open a bus in a new folder; at the end, close it and raise if values are missing."""
    from metricbus import MetricBus

    folder.mkdir(parents=True, exist_ok=True)
    if "mlflow" in sinks:
        empty_database(folder / _DATABASE)
    with log_file(folder / LOG):
        bus = MetricBus(id=RUN, dir=folder, sinks=sinks, close_timeout=TIMEOUT_SECS, **settings)
        yield bus
        report = bus.close()
    if not report.complete:
        raise RuntimeError(f"Values not delivered at close:\n{report}")


@contextmanager
def log_file(file: Path) -> Iterator[None]:
    """Send the `metricbus` logger to a file only, as an application would."""
    logger = logging.getLogger("metricbus")
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


def values_by_sink(folder: Path, sinks: str) -> Mapping[str, int]:
    """Return the number of values in the journal and in each sink, by the backends' readers."""
    run = folder / RUN
    readers = {
        "logging": lambda: log_values(folder / LOG),
        "csv": lambda: tidy_csv_values(run / "csv" / "metrics.csv"),
        "tensorboard": lambda: tensorboard_values(run / "tensorboard"),
        "wandb?mode=offline": lambda: wandb_values(run),
        "mlflow": lambda: mlflow_values(f"sqlite:///{folder / _DATABASE}"),
    }
    counts = {sink: readers[sink]() for sink in sinks.split(",") if sink}
    return {"journal": journal_values(run), **counts}


def own_files(folder: Path, sink: str) -> list[Path]:
    """Return the files that a sink has written in a run of `opened_bus`."""
    run = folder / RUN
    paths = {
        "logging": folder / LOG,
        "csv": run / "csv",
        "tensorboard": run / "tensorboard",
        "wandb?mode=offline": run / "wandb",
        "mlflow": folder / _DATABASE,
    }
    path = paths[sink]
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]

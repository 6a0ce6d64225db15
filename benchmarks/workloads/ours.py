"""metricbus itself beside its peers: a run to all five sinks, or some, and what each then has."""

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
RUN = "run"  # the id, and so the name of the run's folder
LOG = "log.txt"
PATIENCE = 120.0  # seconds for delivery

_DATABASE = "mlflow.db"


@contextmanager
def opened_bus(folder: Path, sinks: str, **settings: Any) -> Iterator[MetricBus]:
    """A bus in a new folder; when it is left, everything has been delivered, or it raises."""
    from metricbus import MetricBus

    folder.mkdir(parents=True, exist_ok=True)
    if "mlflow" in sinks:
        empty_database(folder / _DATABASE)
    with log_file(folder / LOG):
        bus = MetricBus(id=RUN, dir=folder, sinks=sinks, close_timeout=PATIENCE, **settings)
        yield bus
        report = bus.close()
    if not report.complete:
        raise RuntimeError(f"not everything was delivered:\n{report}")


@contextmanager
def log_file(file: Path) -> Iterator[None]:
    """Gives the logger `metricbus` a file, as applications do, and nothing else."""
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
    """What the journal and each sink have, counted by the backend's own reader."""
    run = folder / RUN
    readers = {
        "logging": lambda: log_values(folder / LOG),
        "csv": lambda: tidy_csv_values(run / "csv" / "metrics.csv"),
        "tensorboard": lambda: tensorboard_values(run / "tensorboard"),
        "wandb?mode=offline": lambda: wandb_values(run),
        "mlflow": lambda: mlflow_values(f"sqlite:///{folder / _DATABASE}"),
    }
    found = {sink: readers[sink]() for sink in sinks.split(",") if sink}
    return {"journal": journal_values(run), **found}


def own_files(folder: Path, sink: str) -> list[Path]:
    """The files that a sink has written, of a run that `opened_bus` made."""
    run = folder / RUN
    places = {
        "logging": folder / LOG,
        "csv": run / "csv",
        "tensorboard": run / "tensorboard",
        "wandb?mode=offline": run / "wandb",
        "mlflow": folder / _DATABASE,
    }
    place = places[sink]
    return [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]

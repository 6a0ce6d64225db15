"""Peers for services: Weights & Biases (offline) and MLflow."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.workloads.reading import mlflow_values, wandb_values


class WandbValues:
    """An offline W&B run, called once per value."""

    name = "Run.log, one value per call"
    backend = "wandb"

    def __init__(self, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._run = wandb.init(
            mode="offline",
            project="bench",
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
            reinit="create_new",
        )

    def log(self, name: str, value: float, step: int) -> None:
        """Log one value; W&B merges values of the same step into one row."""
        self._run.log({name: value}, step=step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log the values one by one."""
        for name, value in values.items():
            self._run.log({name: value}, step=step)

    def flush(self) -> None:
        """Do nothing: W&B has no flush; its process decides when to write."""

    def close(self) -> None:
        """Wait until W&B's process has written everything."""
        self._run.finish()

    def count(self) -> int:
        """Count the values in the records of the `.wandb` file."""
        return wandb_values(self._folder)


class WandbRows(WandbValues):
    """An offline W&B run, called once per row."""

    name = "Run.log, one mapping per call"

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log one mapping."""
        self._run.log(values, step=step)


class MlflowValues:
    """MLflow's client, called once per value."""

    name = "MlflowClient.log_metric"
    backend = "mlflow"

    def __init__(self, folder: Path, uri: str = "") -> None:
        from mlflow import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        self._uri = uri or f"sqlite:///{empty_database(folder / 'mlflow.db')}"
        self._client: Any = MlflowClient(self._uri)
        self._experiment = str(folder)  # unique, because the folder is new
        artifacts = (folder / "artifacts").as_uri()
        experiment = self._client.create_experiment(self._experiment, artifact_location=artifacts)
        self._run = self._client.create_run(experiment).info.run_id

    def log(self, name: str, value: float, step: int) -> None:
        """Log one value, in a transaction or in a request to the server."""
        self._client.log_metric(self._run, name, value, step=step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log the values one by one."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def flush(self) -> None:
        """Do nothing: a call returns when its values are in the database."""

    def close(self) -> None:
        """Set the run to finished."""
        self._client.set_terminated(self._run)

    def count(self) -> int:
        """Count the values in the client's metric histories."""
        return mlflow_values(self._uri, self._experiment)


class MlflowBatches(MlflowValues):
    """MLflow's client, called once per row with `log_batch`."""

    name = "MlflowClient.log_batch"

    def log(self, name: str, value: float, step: int) -> None:
        """Log a batch with one value."""
        self.log_row({name: value}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log one batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1e3)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics)


def empty_database(file: Path) -> Path:
    """Create a database with MLflow's tables by copying a template; return its path.

    The template is in the parent of the file's folder. Creating the tables takes seconds, which
    are not part of the cost of logging.
    """
    shutil.copy(make_template(file.parent.parent), file)
    return file


def make_template(folder: Path) -> Path:
    """Create the template that `empty_database` copies, if it does not exist; return its path.

    Call this before starting several processes that use the template.
    """
    template = folder / "mlflow-empty.db"
    if not template.exists():
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        MlflowClient(f"sqlite:///{template}").search_experiments()
    return template

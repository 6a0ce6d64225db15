"""Peers with a service behind them: Weights & Biases (offline) and MLflow."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.workloads.reading import mlflow_values, wandb_values


class WandbValues:
    """W&B's run, offline, with one value a call."""

    name = "Run.log, a value a call"
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
        """A call; those of the same step become one row of the history."""
        self._run.log({name: value}, step=step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """A call each."""
        for name, value in values.items():
            self._run.log({name: value}, step=step)

    def flush(self) -> None:
        """There is no such call: W&B's own process writes when it likes."""

    def close(self) -> None:
        """Waits until W&B's own process has written everything."""
        self._run.finish()

    def count(self) -> int:
        """By reading the records of its `.wandb` file."""
        return wandb_values(self._folder)


class WandbRows(WandbValues):
    """The same with a mapping a call."""

    name = "Run.log, a mapping a call"

    def log_row(self, values: dict[str, float], step: int) -> None:
        """One call."""
        self._run.log(values, step=step)


class MlflowValues:
    """MLflow's client, with one value a call."""

    name = "MlflowClient.log_metric"
    backend = "mlflow"

    def __init__(self, folder: Path, uri: str = "") -> None:
        from mlflow import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        self._uri = uri or f"sqlite:///{empty_database(folder / 'mlflow.db')}"
        self._client: Any = MlflowClient(self._uri)
        self._experiment = str(folder)  # the folder is new, so this is too
        place = (folder / "artifacts").as_uri()
        experiment = self._client.create_experiment(self._experiment, artifact_location=place)
        self._run = self._client.create_run(experiment).info.run_id

    def log(self, name: str, value: float, step: int) -> None:
        """A transaction or, to a server, a request."""
        self._client.log_metric(self._run, name, value, step=step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """A call each."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def flush(self) -> None:
        """Calls return when the database has it."""

    def close(self) -> None:
        """Says that the run has ended."""
        self._client.set_terminated(self._run)

    def count(self) -> int:
        """By the client's metric histories."""
        return mlflow_values(self._uri, self._experiment)


class MlflowBatches(MlflowValues):
    """The same by `log_batch`, many values together."""

    name = "MlflowClient.log_batch"

    def log(self, name: str, value: float, step: int) -> None:
        """A batch of one."""
        self.log_row({name: value}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """One batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1e3)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics)


def empty_database(file: Path) -> Path:
    """A database with MLflow's tables, copied from one above the file's folder that is made once.

    Making the tables takes MLflow seconds, which say nothing about logging.
    """
    shutil.copy(make_template(file.parent.parent), file)
    return file


def make_template(folder: Path) -> Path:
    """The database that `empty_database` copies; who starts several processes makes it first."""
    template = folder / "mlflow-empty.db"
    if not template.exists():
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        MlflowClient(f"sqlite:///{template}").search_experiments()
    return template

"""Peers that write files: TensorBoard's events, CSV, log lines."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from benchmarks.workloads.reading import log_values, tensorboard_values, wide_csv_values

_NEVER = 10**9  # steps between the writes of a logger that is told when to write


class _EventWriter:
    """What the writers with PyTorch's `add_scalar` have in common."""

    name = ""
    backend = "tensorboard"
    _writer: Any

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log(self, name: str, value: float, step: int) -> None:
        """One event."""
        self._writer.add_scalar(name, value, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """An event each: `add_scalars` would make a run of each name."""
        add_scalar = self._writer.add_scalar
        for name, value in values.items():
            add_scalar(name, value, step)

    def flush(self) -> None:
        """Waits for the writer's thread, and flushes its file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()

    def count(self) -> int:
        """By TensorBoard's loader of event files."""
        return tensorboard_values(self._folder)


class TorchWriter(_EventWriter):
    """PyTorch's own."""

    name = "SummaryWriter.add_scalar"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder)
        writer: Any = SummaryWriter
        self._writer = writer(folder)


class TensorBoardX(_EventWriter):
    """The same without PyTorch."""

    name = "tensorboardX.add_scalar"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))


class LightningTensorBoard:
    """Lightning's, which writes by PyTorch's writer."""

    name = "TensorBoardLogger.log_metrics"
    backend = "tensorboard"

    def __init__(self, folder: Path) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        self._folder = folder
        self._logger: Any = TensorBoardLogger(folder)

    def log(self, name: str, value: float, step: int) -> None:
        """A mapping of one."""
        self._logger.log_metrics({name: value}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """One mapping."""
        self._logger.log_metrics(values, step)

    def flush(self) -> None:
        """Flushes the writer behind it."""
        self._logger.experiment.flush()

    def close(self) -> None:
        """Ends the run as the trainer does."""
        self._logger.finalize("success")

    def count(self) -> int:
        """By TensorBoard's loader of event files."""
        return tensorboard_values(self._folder)


class LightningCsv:
    """Lightning's, which keeps rows in memory until it is told to save."""

    name = "CSVLogger.log_metrics"
    backend = "csv"

    def __init__(self, folder: Path) -> None:
        from lightning.pytorch.loggers import CSVLogger

        self._logger: Any = CSVLogger(folder, flush_logs_every_n_steps=_NEVER)

    def log(self, name: str, value: float, step: int) -> None:
        """A row with one value."""
        self._logger.log_metrics({name: value}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """One row."""
        self._logger.log_metrics(values, step)

    def flush(self) -> None:
        """Appends the rows to the file."""
        self._logger.save()

    def close(self) -> None:
        """Saves what is left, as the trainer does at the end."""
        self._logger.finalize("success")

    def count(self) -> int:
        """By the `csv` module; where nothing was logged, there is no file."""
        file = Path(self._logger.log_dir) / "metrics.csv"
        return wide_csv_values(file) if file.exists() else 0


class StandardLogging:
    """The standard library's, to a file."""

    name = "logging.info"
    backend = "logging"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "log.txt"
        self._handler = logging.FileHandler(self._file)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        # With no parent, so that nothing but the file gets it, and nothing is left behind.
        self._logger = logging.Logger("train", logging.INFO)
        self._logger.addHandler(self._handler)

    def log(self, name: str, value: float, step: int) -> None:
        """A line."""
        self._logger.info("step %d %s=%g", step, name, value)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """A line for the whole row."""
        row = " ".join([f"{name}={value:g}" for name, value in values.items()])
        self._logger.info("step %d %s", step, row)

    def flush(self) -> None:
        """A handler writes each line at once."""
        self._handler.flush()

    def close(self) -> None:
        """Closes the file."""
        self._logger.removeHandler(self._handler)
        self._handler.close()

    def count(self) -> int:
        """By reading `name=value` in every line."""
        return log_values(self._file)

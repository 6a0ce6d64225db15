"""Peers that write files: TensorBoard events, CSV, and log lines."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from benchmarks.workloads.reading import log_values, tensorboard_values, wide_csv_values

_NEVER = 10**9  # steps between automatic writes; the benchmark flushes explicitly


class _EventWriter:
    """Base class of the writers with PyTorch's `add_scalar` interface."""

    name = ""
    backend = "tensorboard"
    _writer: Any

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log(self, name: str, value: float, step: int) -> None:
        """Write one event."""
        self._writer.add_scalar(name, value, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Write one event per value; `add_scalars` would create a run per name."""
        add_scalar = self._writer.add_scalar
        for name, value in values.items():
            add_scalar(name, value, step)

    def flush(self) -> None:
        """Wait for the writer's thread and flush its file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def count(self) -> int:
        """Count the values with TensorBoard's event file loader."""
        return tensorboard_values(self._folder)


class TorchWriter(_EventWriter):
    """PyTorch's `SummaryWriter`."""

    name = "SummaryWriter.add_scalar"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder)
        writer: Any = SummaryWriter
        self._writer = writer(folder)


class TensorBoardX(_EventWriter):
    """tensorboardX's `SummaryWriter`, which does not need PyTorch."""

    name = "tensorboardX.add_scalar"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))


class LightningTensorBoard:
    """Lightning's `TensorBoardLogger`, which uses PyTorch's writer."""

    name = "TensorBoardLogger.log_metrics"
    backend = "tensorboard"

    def __init__(self, folder: Path) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        self._folder = folder
        self._logger: Any = TensorBoardLogger(folder)

    def log(self, name: str, value: float, step: int) -> None:
        """Log a mapping with one value."""
        self._logger.log_metrics({name: value}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log one mapping."""
        self._logger.log_metrics(values, step)

    def flush(self) -> None:
        """Flush the underlying writer."""
        self._logger.experiment.flush()

    def close(self) -> None:
        """Finalize the run, as the Trainer does."""
        self._logger.finalize("success")

    def count(self) -> int:
        """Count the values with TensorBoard's event file loader."""
        return tensorboard_values(self._folder)


class LightningCsv:
    """Lightning's `CSVLogger`, which keeps rows in memory until `save` is called."""

    name = "CSVLogger.log_metrics"
    backend = "csv"

    def __init__(self, folder: Path) -> None:
        from lightning.pytorch.loggers import CSVLogger

        self._logger: Any = CSVLogger(folder, flush_logs_every_n_steps=_NEVER)

    def log(self, name: str, value: float, step: int) -> None:
        """Add a row with one value."""
        self._logger.log_metrics({name: value}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Add one row."""
        self._logger.log_metrics(values, step)

    def flush(self) -> None:
        """Append the rows to the file."""
        self._logger.save()

    def close(self) -> None:
        """Save the remaining rows, as the Trainer does at the end."""
        self._logger.finalize("success")

    def count(self) -> int:
        """Count the values with the `csv` module; without values, there is no file."""
        file = Path(self._logger.log_dir) / "metrics.csv"
        return wide_csv_values(file) if file.exists() else 0


class StandardLogging:
    """The standard library's `logging`, with a file handler."""

    name = "logging.info"
    backend = "logging"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "log.txt"
        self._handler = logging.FileHandler(self._file)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        # The logger has no parent, so records go only to the file, and no global state changes.
        self._logger = logging.Logger("train", logging.INFO)
        self._logger.addHandler(self._handler)

    def log(self, name: str, value: float, step: int) -> None:
        """Log one line."""
        self._logger.info("step %d %s=%g", step, name, value)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log one line for the whole row."""
        row = " ".join([f"{name}={value:g}" for name, value in values.items()])
        self._logger.info("step %d %s", step, row)

    def flush(self) -> None:
        """Flush the handler, which has already written each line."""
        self._handler.flush()

    def close(self) -> None:
        """Close the file."""
        self._logger.removeHandler(self._handler)
        self._handler.close()

    def count(self) -> int:
        """Count the `name=value` pairs in all lines."""
        return log_values(self._file)

"""Peers: other loggers behind one interface. Each is opened for one run in a new folder.

Peers are called as their documentation describes, with an explicit step. `PEERS` contains the
peers that this interpreter can import. `SEPARATE_PEERS` contains those that have an environment of
their own, if it is installed. `MISSING` maps the unavailable peers to the reasons.

This module only imports the standard library, and imports the package of a peer when the peer is
opened. Any of the environments can therefore use it, and a case only pays for what it uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.peers.files import (
    LightningCsv,
    LightningTensorBoard,
    StandardLogging,
    TensorBoardX,
    TorchWriter,
)
from benchmarks.peers.separate import CluWriter, Trackio
from benchmarks.peers.server import mlflow_server
from benchmarks.peers.services import MlflowBatches, MlflowValues, WandbRows, WandbValues

__all__ = ["MISSING", "PEERS", "SEPARATE_PEERS", "Peer", "mlflow_peer", "mlflow_server", "quiet"]

SEPARATE_PYTHON = Path(__file__).resolve().parents[2] / ".venv" / "peers" / "bin" / "python"
_QUIET_SETTINGS = {
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}


class Peer(Protocol):
    """A logger, opened for one run in one folder."""

    @property
    def name(self) -> str:
        """The method that is called, such as `SummaryWriter.add_scalar`."""

    @property
    def backend(self) -> str:
        """The backend: `tensorboard`, `csv`, `logging`, `wandb`, `mlflow` or `trackio`."""

    def log(self, name: str, value: float, step: int) -> None:
        """Log one value, as the peer's documentation describes."""

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log several values in one call if the peer supports it, and one by one otherwise."""

    def flush(self) -> None:
        """Flush pending values; does nothing for W&B and trackio, which have no flush."""

    def close(self) -> None:
        """Close the run; afterwards, everything is on disk or in the database."""

    def count(self) -> int:
        """Count the values with the backend's own reader, after `close()`."""


class _Entry(NamedTuple):
    """A known peer; `separate` means that it may have an environment of its own."""

    open: Callable[[Path], Peer]
    packages: tuple[str, ...] = ()
    separate: bool = False


def _needs_server(folder: Path) -> Peer:
    raise ValueError(
        "Open this peer with mlflow_peer(folder, uri); mlflow_server() yields the URI."
    )


_KNOWN: Mapping[str, _Entry] = {
    "SummaryWriter": _Entry(TorchWriter, ("torch", "tensorboard")),
    "tensorboardX": _Entry(TensorBoardX, ("tensorboardX", "tensorboard")),
    "Lightning TensorBoardLogger": _Entry(LightningTensorBoard, ("lightning", "tensorboard")),
    "CLU": _Entry(CluWriter, ("clu", "tensorflow", "tensorboard"), separate=True),
    "Lightning CSVLogger": _Entry(LightningCsv, ("lightning",)),
    "logging": _Entry(StandardLogging),
    "wandb": _Entry(WandbValues, ("wandb",)),
    "wandb, one mapping per call": _Entry(WandbRows, ("wandb",)),
    "mlflow, sqlite": _Entry(MlflowValues, ("mlflow",)),
    "mlflow, sqlite, log_batch": _Entry(MlflowBatches, ("mlflow",)),
    "mlflow, server": _Entry(_needs_server, ("mlflow",)),
    "trackio": _Entry(Trackio, ("trackio",), separate=True),
}


def _missing_packages(entry: _Entry) -> list[str]:
    return [package for package in entry.packages if find_spec(package) is None]


def _reason(entry: _Entry) -> str:
    """Return why a peer cannot be measured; empty if it can."""
    packages = _missing_packages(entry)
    if not packages or (entry.separate and SEPARATE_PYTHON.exists()):
        return ""
    text = f"not installed: {', '.join(packages)}"
    if entry.separate:
        text += "; `make .venv/peers/installed` creates its environment"
    return text


PEERS: dict[str, Callable[[Path], Peer]] = {
    name: entry.open for name, entry in _KNOWN.items() if not _missing_packages(entry)
}
"""Functions that open a run in a new folder, by peer; only peers that can be imported."""

SEPARATE_PEERS: dict[str, Path] = {
    name: SEPARATE_PYTHON
    for name, entry in _KNOWN.items()
    if entry.separate and _missing_packages(entry) and SEPARATE_PYTHON.exists()
}
"""Interpreters of the peers that this interpreter cannot import."""

MISSING: dict[str, str] = {
    name: reason for name, entry in _KNOWN.items() if (reason := _reason(entry))
}
"""Reasons why peers cannot be measured, by peer."""


def mlflow_peer(folder: Path, uri: str) -> Peer:
    """Open the peer `mlflow, server`: a run in a new experiment on the server."""
    return MlflowValues(folder, uri)


def quiet() -> None:
    """Disable output and telemetry of the peers, unless the environment configures them."""
    for name, value in _QUIET_SETTINGS.items():
        os.environ.setdefault(name, value)

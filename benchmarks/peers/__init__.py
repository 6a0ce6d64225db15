"""What people log with today, behind one interface; each is opened for one run in one folder.

Peers are called as their own documentation has it, with the step given. `PEERS` has those whose
packages are installed beside this interpreter, `MISSING` says why the others are not there, and
`APART` names those that need an environment of their own, where that has been built. This module
imports the standard library alone, and a peer's package is imported when it is opened, so that any
of these environments can run it and each case pays for what it uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.peers.apart import CluWriter, Trackio
from benchmarks.peers.files import (
    LightningCsv,
    LightningTensorBoard,
    StandardLogging,
    TensorBoardX,
    TorchWriter,
)
from benchmarks.peers.server import mlflow_server
from benchmarks.peers.services import MlflowBatches, MlflowValues, WandbRows, WandbValues

__all__ = ["APART", "MISSING", "PEERS", "Peer", "mlflow_peer", "mlflow_server", "quiet"]

APART_PYTHON = Path(__file__).resolve().parents[2] / ".venv" / "peers" / "bin" / "python"
_QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}


class Peer(Protocol):
    """One way to log that people use, opened for one run in one folder."""

    @property
    def name(self) -> str:
        """What is called: `SummaryWriter.add_scalar`."""

    @property
    def backend(self) -> str:
        """What it writes: `tensorboard`, `csv`, `logging`, `wandb`, `mlflow` or `trackio`."""

    def log(self, name: str, value: float, step: int) -> None:
        """Logs one value, as its documentation has it."""

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Logs many together where it can, else one after the other."""

    def flush(self) -> None:
        """Has written what it can be told to write; W&B and trackio cannot be told."""

    def close(self) -> None:
        """After it, everything is on disk or in the database."""

    def count(self) -> int:
        """Values read back by the backend's own reader, after `close()`."""


class _Entry(NamedTuple):
    """How to open a peer, the packages it needs, and whether they have their own environment."""

    open: Callable[[Path], Peer]
    packages: tuple[str, ...] = ()
    apart: bool = False


def _needs_server(folder: Path) -> Peer:
    raise ValueError("open it by mlflow_peer(folder, uri), with an address from mlflow_server()")


_KNOWN: Mapping[str, _Entry] = {
    "SummaryWriter": _Entry(TorchWriter, ("torch", "tensorboard")),
    "tensorboardX": _Entry(TensorBoardX, ("tensorboardX", "tensorboard")),
    "Lightning TensorBoardLogger": _Entry(LightningTensorBoard, ("lightning", "tensorboard")),
    "CLU": _Entry(CluWriter, ("clu", "tensorflow", "tensorboard"), apart=True),
    "Lightning CSVLogger": _Entry(LightningCsv, ("lightning",)),
    "logging": _Entry(StandardLogging),
    "wandb": _Entry(WandbValues, ("wandb",)),
    "wandb, a mapping a call": _Entry(WandbRows, ("wandb",)),
    "mlflow, sqlite": _Entry(MlflowValues, ("mlflow",)),
    "mlflow, sqlite, log_batch": _Entry(MlflowBatches, ("mlflow",)),
    "mlflow, server": _Entry(_needs_server, ("mlflow",)),
    "trackio": _Entry(Trackio, ("trackio",), apart=True),
}


def _lacks(entry: _Entry) -> list[str]:
    return [package for package in entry.packages if find_spec(package) is None]


def _reason(entry: _Entry) -> str:
    """Why a peer cannot be measured here; empty if it can."""
    lacks = _lacks(entry)
    if not lacks or (entry.apart and APART_PYTHON.exists()):
        return ""
    words = f"not installed: {', '.join(lacks)}"
    return f"{words}; `make .venv/peers/installed` builds its environment" if entry.apart else words


PEERS: dict[str, Callable[[Path], Peer]] = {
    name: entry.open for name, entry in _KNOWN.items() if not _lacks(entry)
}
"""A new run in a new folder, by name; only those that this interpreter can import."""

APART: dict[str, Path] = {
    name: APART_PYTHON
    for name, entry in _KNOWN.items()
    if entry.apart and _lacks(entry) and APART_PYTHON.exists()
}
"""The interpreter that has a peer which this one has not, by the peer's name."""

MISSING: dict[str, str] = {
    name: reason for name, entry in _KNOWN.items() if (reason := _reason(entry))
}
"""Those that cannot be measured here, and why."""


def mlflow_peer(folder: Path, uri: str) -> Peer:
    """`mlflow, server`: a new run in an experiment of its own, at the address."""
    return MlflowValues(folder, uri)


def quiet() -> None:
    """Keeps the peers from talking and from calling home; what the environment says goes first."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)

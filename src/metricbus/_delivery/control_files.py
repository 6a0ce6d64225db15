"""What the training process and its delivery process tell each other, by two small files.

    delivery/orders-1.json   by the training: take what there is now; the run has ended
    delivery/status-1.json   by the delivery: how far each sink is, and what there was to say

The number is that of the attempt at the run.

Each file has one writer, who replaces it as a whole. Records go by the journal alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from metricbus._common.files import replace_file
from metricbus._common.processes import ProcessId
from metricbus._common.records import Status
from metricbus._delivery.report import Tally
from metricbus._journal.run import RunFolder

WORKER_CONFIG_ENV = "METRICBUS_DELIVERY_TOLD"
"""Where the delivery process finds what must be in no file: `WorkerConfig`, in JSON."""


class WorkerConfig(msgspec.Struct, frozen=True):
    """The sinks' URLs, and the training's command line, which backends ask for."""

    sinks: list[str]
    argv: list[str]
    attempt: int


class WorkerCommands(msgspec.Struct, frozen=True):
    """What the training process wants: `hurries` counts how often it asked for all there is.

    `alone` says that it waits no longer.
    """

    hurries: int = 0
    ended: Status | None = None
    alone: bool = False


class RelayedWarning(msgspec.Struct, frozen=True):
    """A warning of the delivery process, to be told where the user looks. Times grow."""

    time: int
    logger: str
    level: int
    text: str


class DeliveryStatus(msgspec.Struct, frozen=True):
    """How far the delivery `process` is, by the sinks' names.

    `finished` names the sinks that are closed. `waits_only` says that the run has ended, that all
    there is has been delivered, and that processes which joined the run may still write. `over`
    says that the process ends, whether all is done or not.
    """

    process: ProcessId
    tallies: dict[str, Tally]
    finished: list[str] = []
    waits_only: bool = False
    said: list[RelayedWarning] = []
    over: bool = False


T = TypeVar("T")


class AtomicJsonFile(Generic[T]):
    """One of the two files."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._path = path
        self._kind = kind
        self._version: tuple[int, int] | None = None
        self._content: T | None = None

    def write(self, content: T) -> None:
        """Replaces the file; `OSError` if it stays as it was."""
        replace_file(self._path, msgspec.json.encode(content))

    def read(self) -> T | None:
        """What it says now; None if it says nothing yet."""
        try:
            stat = self._path.stat()
            version = (stat.st_ino, stat.st_mtime_ns)
            if version != self._version:
                self._content = msgspec.json.decode(self._path.read_bytes(), type=self._kind)
                self._version = version
        except (OSError, msgspec.DecodeError):  # not there, or hurt by a crash: the last one holds
            pass
        return self._content


def worker_commands_file(folder: RunFolder, attempt: int) -> AtomicJsonFile[WorkerCommands]:
    """The orders of one attempt at the run."""
    return AtomicJsonFile(folder.delivery / f"orders-{attempt}.json", WorkerCommands)


def delivery_status_file(folder: RunFolder, attempt: int) -> AtomicJsonFile[DeliveryStatus]:
    """The delivery's status, for one attempt at the run."""
    return AtomicJsonFile(folder.delivery / f"status-{attempt}.json", DeliveryStatus)


def delivery_log(folder: RunFolder) -> Path:
    """The delivery process's log."""
    return folder.delivery / "delivery.log"

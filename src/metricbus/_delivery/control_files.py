"""The two files through which the training process and the delivery process communicate.

    delivery/orders-1.json   written by the training process: flush requests, the end of the run
    delivery/status-1.json   written by the delivery process: progress of each sink, warnings

The number is the attempt of the run. Each file has one writer, which replaces it atomically.
Records are passed through the journal alone.
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

WORKER_CONFIG_ENV = "METRICBUS_DELIVERY_CONFIG"
"""The environment variable with the `WorkerConfig` in JSON; it may contain secrets."""


class WorkerConfig(msgspec.Struct, frozen=True):
    """The sink URLs, and the command line of the training, which some backends record."""

    sinks: list[str]
    argv: list[str]
    attempt: int


class WorkerCommands(msgspec.Struct, frozen=True):
    """What the training process asks of the delivery process.

    `flush_requests` counts the requests to deliver everything in the journal. `final_status` is set
    once the run has ended. `is_detached` means that the training process no longer waits.
    """

    flush_requests: int = msgspec.field(default=0, name="hurries")
    final_status: Status | None = msgspec.field(default=None, name="ended")
    is_detached: bool = msgspec.field(default=False, name="alone")


class RelayedWarning(msgspec.Struct, frozen=True):
    """A warning of the delivery process for the training process's log; `time` increases."""

    time: int
    logger: str
    level: int
    text: str


class DeliveryStatus(msgspec.Struct, frozen=True):
    """The state of the delivery `process`.

    `tallies` has the progress of each sink by its name, `finished` the names of the closed sinks.
    `waits_for_writers` means that the run has ended and everything was delivered, but other
    processes of the run may still write. `is_exiting` means that the process stops, whether or not
    everything was delivered.
    """

    process: ProcessId
    tallies: dict[str, Tally]
    finished: list[str] = []
    waits_for_writers: bool = msgspec.field(default=False, name="waits_only")
    warnings: list[RelayedWarning] = msgspec.field(default_factory=list, name="said")
    is_exiting: bool = msgspec.field(default=False, name="over")


_COMMANDS = msgspec.json.Decoder(WorkerCommands)
_STATUS = msgspec.json.Decoder(DeliveryStatus)

T = TypeVar("T")


class AtomicJsonFile(Generic[T]):
    """A JSON file that is replaced atomically and decoded only when it has changed."""

    def __init__(self, path: Path, decoder: msgspec.json.Decoder[T]) -> None:
        self._path = path
        self._decoder = decoder
        self._version: tuple[int, int] | None = None
        self._content: T | None = None

    def write(self, content: T) -> None:
        """Replace the file. If this raises `OSError`, the old file remains."""
        replace_file(self._path, msgspec.json.encode(content))

    def read(self) -> T | None:
        """Return the content, or the last readable one; None if there was none yet."""
        try:
            stat = self._path.stat()
            version = (stat.st_ino, stat.st_mtime_ns)
            if version != self._version:
                self._content = self._decoder.decode(self._path.read_bytes())
                self._version = version
        except (OSError, msgspec.DecodeError):  # missing, or damaged by a crash
            pass
        return self._content


def worker_commands_file(folder: RunFolder, attempt: int) -> AtomicJsonFile[WorkerCommands]:
    """Return the file with the commands for the delivery process of one attempt."""
    return AtomicJsonFile(folder.delivery / f"orders-{attempt}.json", _COMMANDS)


def delivery_status_file(folder: RunFolder, attempt: int) -> AtomicJsonFile[DeliveryStatus]:
    """Return the file with the status of the delivery process of one attempt."""
    return AtomicJsonFile(folder.delivery / f"status-{attempt}.json", _STATUS)

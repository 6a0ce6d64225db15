"""Ensures that only one process at a time delivers a run to a given sink.

The holder creates a lease file named `<sink>.lease-<number>`, which contains its process id, with
exclusive creation, and touches it every five seconds. Before each write it checks that the file
still exists. If not, another process has taken over the lease and the holder must stop. A lease can
be taken over when its holder has died, or when the file has not been touched for a minute, because
the holder is frozen or on another host. Numbers only increase. No file is ever locked, so leases
work on network file systems.
"""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import msgspec

from metricbus._common.files import create_file
from metricbus._common.processes import ProcessId, decode_process_id, this_process
from metricbus.errors import BackendUnavailableError, MetricBusError

_STALE_SECS = 60.0
_TOUCH_SECS = 5.0
_RETRY_SECS = 1.0


class LeaseHeld(BackendUnavailableError):  # noqa: N818 - named for the event, like LeaseLost
    """Another process is delivering to this sink."""


class LeaseLost(MetricBusError):  # noqa: N818 - named for the event, like LeaseHeld
    """Another process has taken over the lease."""


class Lease:
    """The right to deliver a run to one sink; its files are named after `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Path | None = None
        self._touched = 0.0

    def acquire(self, above: int = 0) -> int:
        """Acquire the lease and return its number, greater than `above` and all earlier numbers.

        Raises `LeaseHeld` while another process holds it.
        """
        files = self._lease_files()
        for number, file in files.items():
            if holder := _live_holder(file):
                raise LeaseHeld(
                    f"already being delivered by {holder} (lease {number}); wait for that process "
                    "to finish, or stop it",
                    retry_after=_RETRY_SECS,
                )
        number = max([above, *files], default=0) + 1
        own = self._path.with_name(f"{self._path.name}.lease-{number:06d}")
        taken = LeaseHeld("another process has just started to deliver", retry_after=_RETRY_SECS)
        try:
            create_file(own, msgspec.json.encode(this_process()))
        except FileExistsError:
            raise taken from None
        # Another process may have acquired a lease since the files were listed.
        for other, file in self._lease_files().items():
            if other > number or (other < number and _live_holder(file)):
                own.unlink(missing_ok=True)
                raise taken
        for old in files.values():
            old.unlink(missing_ok=True)
        self._file = own
        self._touched = time.monotonic()
        return number

    def check(self) -> None:
        """Renew the lease. Raises `LeaseLost` if another process has taken it over."""
        if self._file is None:
            return
        try:
            if time.monotonic() - self._touched >= _TOUCH_SECS:
                os.utime(self._file)
                self._touched = time.monotonic()
            else:
                os.stat(self._file)
        except FileNotFoundError:
            # If the whole folder is gone, reading the journal reports it.
            if self._path.parent.is_dir():
                raise LeaseLost("another process has taken over this sink") from None

    def release(self) -> None:
        """Release the lease, if it is held."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _lease_files(self) -> dict[int, Path]:
        prefix = f"{self._path.name}.lease-"
        return {
            int(file.name.removeprefix(prefix)): file
            for file in sorted(self._path.parent.glob(f"{glob.escape(prefix)}*"))
        }


def _live_holder(file: Path) -> ProcessId | None:
    """Return the process that holds a lease; None if it was released or can be taken over."""
    try:
        content = file.read_bytes()
        age = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        holder = decode_process_id(content)
    except msgspec.DecodeError:
        # The file is incomplete: still being written, or left by a crash. Its age decides.
        holder = ProcessId("unknown", 0)
    return holder if holder.is_alive() and age < _STALE_SECS else None

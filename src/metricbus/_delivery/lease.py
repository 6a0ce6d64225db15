"""Who delivers: one process at a time feeds one sink of one run.

The holder of a lease has a file `<sink>.lease-<number>` beside the sink's progress, which says who
it is and is touched every few seconds. Whoever finds its own file gone has lost the lease, however
long it slept, and must not write any more. A lease passes on when its holder has died or, of
another machine or frozen, has not touched its file for a minute. The new holder's number is higher,
and creating its file is exclusive: of two that try, one gets it. No file is ever locked.
"""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import msgspec

from metricbus._common.files import create_file
from metricbus._common.processes import ProcessId, this_process
from metricbus.errors import MetricBusError, Unavailable

_STALE_SECS = 60.0
_TOUCH_EVERY = 5.0


class LeaseHeld(Unavailable):
    """Another process delivers to this sink."""


class Superseded(MetricBusError):  # noqa: N818 - it says what has happened
    """Another process has taken over."""


class Lease:
    """The right to feed one sink of one run; `path` is the file beside which it is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own: Path | None = None
        self._touched = 0.0

    def acquire(self, above: int = 0) -> int:
        """Takes the lease; its number, which is above all before and `above`.

        Raises `LeaseHeld` while another process has it.
        """
        files = self._files()
        for number, file in files.items():
            holder = _read(file)
            if holder is not None and _holds(holder, file):
                raise LeaseHeld(
                    f"{holder} delivers to this sink (lease {number}); wait until it has ended",
                    retry_after=1.0,
                )
        number = max([above, *files], default=0) + 1
        own = self._path.with_name(f"{self._path.name}.lease-{number:06d}")
        try:
            create_file(own, msgspec.json.encode(this_process()))
        except FileExistsError:
            raise LeaseHeld("another process has just begun to deliver", retry_after=1.0) from None
        for other, file in self._files().items():
            holder = _read(file)
            if other > number or (other < number and holder is not None and _holds(holder, file)):
                own.unlink(missing_ok=True)  # somebody else came in between
                raise LeaseHeld("another process has just begun to deliver", retry_after=1.0)
        for old in files.values():
            old.unlink(missing_ok=True)
        self._own = own
        self._touched = time.monotonic()
        return number

    def check(self) -> None:
        """`Superseded` if another process has taken the lease; else it is kept alive."""
        if self._own is None:
            return
        try:
            if time.monotonic() - self._touched >= _TOUCH_EVERY:
                os.utime(self._own)
                self._touched = time.monotonic()
            else:
                os.stat(self._own)
        except FileNotFoundError:
            if self._path.parent.is_dir():  # else the run's folder is gone, which others tell
                raise Superseded("another process has taken over this sink") from None

    def release(self) -> None:
        """Gives the lease back; without one, does nothing."""
        if self._own is not None:
            self._own.unlink(missing_ok=True)
            self._own = None

    def _files(self) -> dict[int, Path]:
        prefix = f"{self._path.name}.lease-"
        return {
            int(file.name.removeprefix(prefix)): file
            for file in sorted(self._path.parent.glob(f"{glob.escape(prefix)}*"))
        }


def _read(file: Path) -> ProcessId | None:
    """Whose lease it is; None if it has just been given back."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=ProcessId)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:  # being written, or torn by a crash: its age decides
        return ProcessId("unknown", 0)


def _holds(holder: ProcessId, file: Path) -> bool:
    try:
        age = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return False
    return holder.is_alive() and age < _STALE_SECS

"""How a bus ends when nobody closes it: the end of the script, and a fork."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol

from metricbus.records import Status


class Open(Protocol):
    """Something that is open, as long as the process or until it is closed."""

    def close_at_exit(self, status: Status) -> None:
        """The script ends."""

    def sleep_in_child(self) -> None:
        """A fork happened, and this is the child's copy."""


_open: set[Open] = set()


def watch(bus: Open) -> None:
    """Closes it at the end of the script, unless it is forgotten before."""
    _open.add(bus)
    _watch_worker()


def opened() -> list[Open]:
    """All that are open."""
    return list(_open)


def _watch_worker() -> None:
    """In a process of `multiprocessing`, which ends without `atexit`, its finaliser does the same.

    Whoever has not imported that is no such process.
    """
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _close_all, exitpriority=100)


def forget(bus: Open) -> None:
    """It has been closed."""
    _open.discard(bus)


def status_after(error: BaseException | None) -> Status:
    """How a run ended that was left by this exception."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    return "killed" if isinstance(error, KeyboardInterrupt) else "failed"


def _close_all() -> None:
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    while _open:
        _open.pop().close_at_exit(status_after(error))


def _sleep_all() -> None:
    while _open:
        _open.pop().sleep_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_sleep_all)

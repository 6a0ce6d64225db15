"""How a bus ends when nobody closes it: the end of the script, and a fork."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, Protocol

from metricbus._common.records import Status


class Open(Protocol):
    """Something that is open, as long as the process or until it is closed."""

    def _close_at_exit(self, status: Status) -> None:
        """The script ends."""

    def _save_at_sigterm(self) -> None:
        """The process is asked to end, and has little time."""

    def _sleep_in_child(self) -> None:
        """A fork happened, and this is the child's copy."""


_log = logging.getLogger("metricbus")

_open: set[Open] = set()
_before: Any = signal.SIG_DFL  # what SIGTERM did


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


def flush_at_sigterm() -> None:
    """From now on SIGTERM has what is open saved, and then does what it did before.

    Python lets only the main thread say so; elsewhere there is a warning.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is _at_sigterm:
        return
    try:
        signal.signal(signal.SIGTERM, _at_sigterm)
    except ValueError as error:
        _log.warning("SIGTERM does not flush: %s; make the bus in the main thread", error)
    else:
        global _before
        _before = before


def _at_sigterm(number: int, frame: FrameType | None) -> None:
    for bus in opened():
        bus._save_at_sigterm()
    if callable(_before):
        _before(number, frame)
    elif _before == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _close_all() -> None:
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    while _open:
        _open.pop()._close_at_exit(status_after(error))


def _sleep_all() -> None:
    while _open:
        _open.pop()._sleep_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_sleep_all)

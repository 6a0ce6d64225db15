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

    def switch_off_in_child(self) -> None:
        """A fork happened, and this is the child's copy."""


_open: set[Open] = set()


def watch(bus: Open) -> None:
    """Closes it at the end of the script, unless it is forgotten before."""
    _open.add(bus)


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


def _switch_off_all() -> None:
    while _open:
        _open.pop().switch_off_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_switch_off_all)

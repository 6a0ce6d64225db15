"""Open buses at the end of the script, at SIGTERM and after a fork."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, Protocol

from metricbus._common.records import Status
from metricbus._compat.cpython import call_at_worker_end


class OpenBus(Protocol):
    """What this module needs of a bus."""

    def close_at_exit(self, status: Status) -> None: ...
    def save_at_sigterm(self) -> None: ...
    def after_fork_in_child(self) -> None: ...


_log = logging.getLogger("metricbus")

_open_buses: set[OpenBus] = set()
_previous_handler: Any = signal.SIG_DFL  # of SIGTERM


def register(bus: OpenBus) -> None:
    """Have a bus closed at the end of the script, unless it is unregistered before."""
    _open_buses.add(bus)
    call_at_worker_end(_close_all)


def unregister(bus: OpenBus) -> None:
    """Forget a bus that has been closed."""
    _open_buses.discard(bus)


def open_buses() -> list[OpenBus]:
    """Return all registered buses."""
    return list(_open_buses)


def status_for_exception(error: BaseException | None) -> Status:
    """Return the status of a run that was ended by this exception, or without one."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    return "killed" if isinstance(error, KeyboardInterrupt) else "failed"


def flush_at_sigterm() -> None:
    """Install a SIGTERM handler that saves all open buses, then runs the previous handler.

    Python allows this in the main thread only. In another thread, a warning is logged instead.
    """
    previous = signal.getsignal(signal.SIGTERM)
    if previous is _at_sigterm:
        return
    try:
        signal.signal(signal.SIGTERM, _at_sigterm)
    except ValueError as error:
        _log.warning("sigterm='flush' has no effect: %s. Create the bus in the main thread.", error)
    else:
        global _previous_handler
        _previous_handler = previous


def _at_sigterm(number: int, frame: FrameType | None) -> None:
    for bus in open_buses():
        bus.save_at_sigterm()
    if callable(_previous_handler):
        _previous_handler(number, frame)
    elif _previous_handler == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _close_all() -> None:
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    while _open_buses:
        _open_buses.pop().close_at_exit(status_for_exception(error))


def _after_fork_in_child() -> None:
    while _open_buses:
        _open_buses.pop().after_fork_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)

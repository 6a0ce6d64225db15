"""Signals between threads that need no lock of their own, and yielding the GIL.

A signal handler or Ctrl-C can interrupt the thread that sets a `threading.Event`, or waits for it,
while it holds the event's lock. `SimpleQueue` has no lock that Python code could hold.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

_YIELD_SECS = 50e-6


def yield_gil() -> None:
    """Let other threads run; after `sleep(0)` this thread could get the GIL back at once."""
    time.sleep(_YIELD_SECS)


class Wakeup:
    """Wakes the one thread that waits for it; safe to call from a signal handler."""

    def __init__(self) -> None:
        self._signals: SimpleQueue[None] = SimpleQueue()

    def wake(self) -> None:
        """Wake the waiting thread, or let its next wait end at once."""
        self._signals.put(None)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for `wake()` or the timeout, in seconds; all calls so far count as one."""
        try:
            self._signals.get(timeout=_valid_timeout(timeout))
            while True:
                self._signals.get_nowait()
        except Empty:
            pass


class Event:
    """A flag that is set once, and that any number of threads can wait for."""

    def __init__(self) -> None:
        self._is_set = False
        self._signals: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Set the flag; all current and later waits end."""
        self._is_set = True
        self._signals.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set or the timeout, in seconds; return whether it is set."""
        if not self._is_set:
            with suppress(Empty):
                self._signals.get(timeout=_valid_timeout(timeout))
                self._signals.put(None)  # for other waiting threads
        return self._is_set


def _valid_timeout(timeout: float | None) -> float | None:
    return None if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)

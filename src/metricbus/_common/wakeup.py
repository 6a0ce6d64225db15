"""Waking a thread without a lock of ours, telling it of an end, and letting another one work."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

_BREATH = 50e-6


def yield_gil() -> None:
    """Hands the interpreter to the training; a `sleep(0)` may take it back before that wakes up."""
    time.sleep(_BREATH)


class Wakeup:
    """Wakes the one thread that waits for it.

    It may be rung from anywhere, also from a signal handler that interrupts a ringing: unlike
    `threading.Event`, a `SimpleQueue` holds no lock that the handler could meet.
    """

    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()

    def wake(self) -> None:
        """Wakes the waiting thread, or lets its next wait end at once."""
        self._rings.put(None)

    def wait(self, timeout: float | None = None) -> None:
        """Waits for a ring or until the time is up; rings that came together count as one."""
        try:
            self._rings.get(timeout=_possible(timeout))
            while True:
                self._rings.get_nowait()
        except Empty:
            pass


class Event:
    """Tells who waits that something has come to its end.

    Ctrl-C may end a wait at any point: unlike `threading.Event`, there is no lock that it could
    leave held, at which `set` would hang.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._rings: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """It has; all waits end, now and later."""
        self._is_set = True
        self._rings.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it has, or the time is up; whether it has."""
        if not self._is_set:
            with suppress(Empty):
                self._rings.get(timeout=_possible(timeout))
                self._rings.put(None)  # for others who wait
        return self._is_set


def _possible(timeout: float | None) -> float | None:
    return None if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)

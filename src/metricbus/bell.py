"""Waking a thread without a lock of ours, and letting another one work."""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue

_BREATH = 50e-6


def breathe() -> None:
    """Hands the interpreter to the training; a `sleep(0)` may take it back before that wakes up."""
    time.sleep(_BREATH)


class Bell:
    """Wakes the one thread that waits for it.

    It may be rung from anywhere, also from a signal handler that interrupts a ringing: unlike
    `threading.Event`, a `SimpleQueue` holds no lock that the handler could meet.
    """

    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """Wakes the waiting thread, or lets its next wait end at once."""
        self._rings.put(None)

    def wait(self, timeout: float | None = None) -> None:
        """Waits for a ring or until the time is up; rings that came together count as one."""
        try:
            if timeout is not None:
                timeout = min(max(timeout, 0.0), threading.TIMEOUT_MAX)
            self._rings.get(timeout=timeout)
            while True:
                self._rings.get_nowait()
        except Empty:
            pass

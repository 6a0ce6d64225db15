"""How the training process wakes its delivery process: by a byte through a pipe.

Without it, each would only find what the other has written into a file when it next looks. What the
byte means stands in the orders; one that gets lost costs as long as a look takes to come round.

The pipe's end says nothing: a worker of the training may hold it open for as long as it likes.
"""

from __future__ import annotations

import os
import select
import threading
import time


class WakePipe:
    """The training's side: one pipe to each delivery process that it starts.

    The other end stays open here, too: writing into a pipe that nobody could read from would raise
    SIGPIPE, which ends a training that leaves that signal to the system.
    """

    def __init__(self) -> None:
        self._end: int | None = None
        self._others: int | None = None
        self._changing = threading.RLock()  # a number must not be written to when it is another's

    def connect(self) -> int:
        """Makes a pipe; the end for the delivery process, which the caller hands over and closes.

        `OSError` if there are too many open files.
        """
        theirs, ours = os.pipe()
        try:
            kept = os.dup(theirs)
        except OSError:
            os.close(theirs)
            os.close(ours)
            raise
        os.set_blocking(ours, False)
        with self._changing:
            self.disconnect()
            self._end, self._others = ours, kept
        return theirs

    def ring(self) -> None:
        """Wakes the delivery process, if it listens."""
        with self._changing:
            if self._end is not None:
                try:
                    os.write(self._end, b"!")
                except OSError:  # nobody has listened for 64 KiB
                    pass

    def disconnect(self) -> None:
        """Closes the pipe."""
        with self._changing:
            ends = self._end, self._others
            self._end = self._others = None
            for end in ends:
                if end is not None:
                    os.close(end)


class Listener:
    """The delivery process's side, which is its standard input."""

    def __init__(self, end: int = 0) -> None:
        self._end: int | None = end

    def wait(self, secs: float) -> None:
        """Waits for a ring, or until the time is up."""
        if self._end is None:
            time.sleep(secs)
            return
        try:
            ready, _, _ = select.select([self._end], [], [], secs)
            if ready and not os.read(self._end, 1 << 16):
                self._end = None  # nobody is there any more who could ring
        except (OSError, ValueError):  # it was closed, or never was open
            self._end = None

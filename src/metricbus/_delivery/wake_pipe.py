"""Wakes the delivery process from the training process, with a byte through a pipe.

Without the pipe, the delivery process would notice new commands only at its next poll. The byte
carries no information, so losing one only costs a poll interval. A closed pipe does not mean that
the training process has died either: a data loader worker may keep it open.
"""

from __future__ import annotations

import os
import select
import threading
import time


class WakePipe:
    """The training process's end: one pipe at a time, to the current delivery process.

    The read end stays open here as well. Writing to a pipe without readers would raise SIGPIPE,
    which kills a training process that does not handle the signal.
    """

    def __init__(self) -> None:
        self._write_end: int | None = None
        self._read_end: int | None = None
        # Guards against writing to a descriptor number that is closed and reused meanwhile.
        self._lock = threading.RLock()

    def connect(self) -> int:
        """Create a pipe and return its read end, which the caller passes on and then closes.

        Raises `OSError` if there are too many open files.
        """
        read_end, write_end = os.pipe()
        try:
            kept_read_end = os.dup(read_end)
        except OSError:
            os.close(read_end)
            os.close(write_end)
            raise
        os.set_blocking(write_end, False)
        with self._lock:
            self.disconnect()
            self._write_end, self._read_end = write_end, kept_read_end
        return read_end

    def wake(self) -> None:
        """Wake the delivery process, if it is waiting."""
        with self._lock:
            if self._write_end is not None:
                try:
                    os.write(self._write_end, b"!")
                except OSError:  # the pipe is full: wakeups are already pending
                    pass

    def disconnect(self) -> None:
        """Close the pipe."""
        with self._lock:
            ends = self._write_end, self._read_end
            self._write_end = self._read_end = None
            for end in ends:
                if end is not None:
                    os.close(end)


class WakePipeReader:
    """The delivery process's end, which is its standard input."""

    def __init__(self, end: int = 0) -> None:
        self._end: int | None = end

    def wait(self, secs: float) -> None:
        """Wait for a wakeup, but not longer than `secs`."""
        if self._end is None:
            time.sleep(secs)
            return
        try:
            ready, _, _ = select.select([self._end], [], [], secs)
            if ready and not os.read(self._end, 1 << 16):
                self._end = None  # all writers have closed the pipe
        except (OSError, ValueError):  # standard input is closed
            self._end = None

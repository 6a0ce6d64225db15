"""What goes wrong in practice, made to order: sinks that hang or are down, servers, a slow disk."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from metricbus import Sink, Unavailable
from metricbus._common.records import count_values

_LONGEST_WRITE = 4096  # bytes that a slow disk takes at once, so that it is slow evenly


class HangingSink(Sink):
    """Hangs in its first `write` until it is released; from then on it works."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0
        self.hangs = threading.Event()
        self._released = threading.Event()

    def write(self, records: Sequence[Any]) -> None:
        """Blocks, in a wait that leaves the interpreter to others, as a socket would."""
        self.hangs.set()
        self._released.wait()
        self.values += sum(map(count_values, records))

    def release(self) -> None:
        """Lets it go on, so that what it missed can be counted and its thread ends."""
        self._released.set()


class SwitchedSink(Sink):
    """A backend that is up and counts what it gets, or is down for the whole run."""

    def __init__(self, *, up: bool) -> None:
        super().__init__()
        self.values = 0
        self._up = up

    def write(self, records: Sequence[Any]) -> None:
        """Counts the values; `Unavailable` if it is down."""
        if not self._up:
            raise Unavailable("switched off")
        self.values += sum(map(count_values, records))


@contextlib.contextmanager
def hanging_server() -> Iterator[tuple[str, Callable[[float], bool]]]:
    """The address of a server that takes connections and never answers; and who waits for one.

    The kernel completes a connection before anybody accepts it, so this needs no thread.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield address, lambda secs: bool(select.select([server], [], [], secs)[0])


@contextlib.contextmanager
def refusing_server() -> Iterator[str]:
    """The address of a server that is down: its port is kept and refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def slow_disk(bytes_a_second: float) -> Iterator[None]:
    """Has every `os.write` of this process wait for its share of the disk's rate.

    The wait leaves the interpreter to others, as a real write does. What a write is allowed does
    not pile up while nobody writes.
    """
    write = os.write
    with mock.patch("os.write", _Throttle(write, bytes_a_second)):
        yield


class _Throttle:
    """A disk that is busy until it has taken all that it was given before."""

    def __init__(self, write: Callable[[int, Any], int], bytes_a_second: float) -> None:
        self._write = write
        self._rate = bytes_a_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def __call__(self, fd: int, data: Any) -> int:
        """Writes as much as a disk takes at once, when it has time for it."""
        piece = memoryview(data)[:_LONGEST_WRITE]
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + len(piece) / self._rate
            wait = self._free_at - now
        time.sleep(wait)
        return self._write(fd, piece)

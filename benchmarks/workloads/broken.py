"""Broken components for benchmarks: hanging and failing sinks, unreachable servers, a slow disk."""

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

from metricbus import BackendUnavailableError, Sink
from metricbus._common.records import count_values

# Bytes that the slow disk accepts per write; small pieces keep its rate even.
_LONGEST_WRITE = 4096


class HangingSink(Sink):
    """Sink whose first `write` blocks until `release` is called; after that it works."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0
        self.hangs = threading.Event()
        self._released = threading.Event()

    def write(self, records: Sequence[Any]) -> None:
        """Block without holding the GIL, as a socket would."""
        self.hangs.set()
        self._released.wait()
        self.values += sum(map(count_values, records))

    def release(self) -> None:
        """Unblock `write`, so that the held-back values can be counted and the thread can exit."""
        self._released.set()


class SwitchedSink(Sink):
    """Sink that counts values, or that is down for the whole run."""

    def __init__(self, *, up: bool) -> None:
        super().__init__()
        self.values = 0
        self._up = up

    def write(self, records: Sequence[Any]) -> None:
        """Count the values; raise `BackendUnavailableError` if the sink is down."""
        if not self._up:
            raise BackendUnavailableError("switched off")
        self.values += sum(map(count_values, records))


@contextlib.contextmanager
def hanging_server() -> Iterator[tuple[str, Callable[[float], bool]]]:
    """Yield the address of a server that never answers, and a function that waits for a client.

    The function takes a timeout in seconds and returns whether a client has connected. The kernel
    completes connections before the application accepts them, so the server needs no thread.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield address, lambda secs: bool(select.select([server], [], [], secs)[0])


@contextlib.contextmanager
def refusing_server() -> Iterator[str]:
    """Yield the address of a server that is down: the port is reserved and refuses connections."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@contextlib.contextmanager
def slow_disk(bytes_per_second: float) -> Iterator[None]:
    """Limit the rate of `os.write` in this process.

    The wait releases the GIL, as a real write does. Unused capacity does not accumulate.
    """
    write = os.write
    with mock.patch("os.write", _Throttle(write, bytes_per_second)):
        yield


class _Throttle:
    """Replacement for `os.write` that serves writes one after the other, at a fixed rate."""

    def __init__(self, write: Callable[[int, Any], int], bytes_per_second: float) -> None:
        self._write = write
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def __call__(self, fd: int, data: Any) -> int:
        """Write at most `_LONGEST_WRITE` bytes, after the preceding writes."""
        piece = memoryview(data)[:_LONGEST_WRITE]
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + len(piece) / self._rate
            wait = self._free_at - now
        time.sleep(wait)
        return self._write(fd, piece)

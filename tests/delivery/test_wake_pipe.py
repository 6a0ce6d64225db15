"""Waking the delivery process through a pipe."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from metricbus._delivery.wake_pipe import WakePipe, WakePipeReader
from tests.helpers.limits import HANG_SECS


@pytest.fixture
def pipe() -> Iterator[WakePipe]:
    pipe = WakePipe()
    yield pipe
    pipe.disconnect()


def timed_wait(reader: WakePipeReader, secs: float) -> float:
    started = time.monotonic()
    reader.wait(secs)
    return time.monotonic() - started


def test_a_wakeup_before_the_wait_ends_it_immediately(pipe: WakePipe) -> None:
    reader = WakePipeReader(pipe.connect())
    pipe.wake()
    pipe.wake()
    assert timed_wait(reader, 60) < 30
    assert timed_wait(reader, 0.01) >= 0.01  # one wait consumed both


def test_a_wakeup_ends_a_wait(pipe: WakePipe) -> None:
    reader = WakePipeReader(pipe.connect())
    thread = threading.Thread(target=reader.wait, args=(60,))
    thread.start()
    pipe.wake()
    thread.join(30)
    assert not thread.is_alive()


def test_waits_for_the_full_time_after_the_pipe_is_closed(pipe: WakePipe) -> None:
    reader = WakePipeReader(pipe.connect())
    pipe.disconnect()
    reader.wait(HANG_SECS)  # detects the closed pipe
    assert timed_wait(reader, 0.01) >= 0.01


def test_waking_without_a_reader_raises_no_error(pipe: WakePipe) -> None:
    pipe.wake()
    os.close(pipe.connect())
    pipe.wake()
    pipe.disconnect()
    pipe.wake()


def test_waking_without_a_reader_raises_no_signal(pipe: WakePipe) -> None:
    raised: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: raised.append(number))
    try:
        os.close(pipe.connect())
        pipe.wake()
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert not raised


def test_waking_does_not_block_on_a_full_pipe(pipe: WakePipe) -> None:
    end = pipe.connect()
    for _ in range(100_000):  # more than the pipe buffer holds
        pipe.wake()
    os.close(end)


def test_connecting_again_closes_the_first_pipe(pipe: WakePipe) -> None:
    first = pipe.connect()
    second = pipe.connect()
    assert os.read(first, 1) == b""
    pipe.wake()
    assert os.read(second, 1) == b"!"


def test_waits_for_the_full_time_if_standard_input_is_closed() -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    reader = WakePipeReader(read)
    reader.wait(HANG_SECS)
    assert timed_wait(reader, 0.01) >= 0.01

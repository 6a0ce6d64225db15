"""Waking the delivery process by a pipe."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from metricbus._delivery.wake_pipe import WakePipeReader, WakePipe


@pytest.fixture
def doorbell() -> Iterator[WakePipe]:
    bell = WakePipe()
    yield bell
    bell.disconnect()


def seconds_of_a_wait(listener: WakePipeReader, secs: float) -> float:
    started = time.monotonic()
    listener.wait(secs)
    return time.monotonic() - started


def test_a_ring_before_the_wait_ends_it_at_once(doorbell: WakePipe) -> None:
    listener = WakePipeReader(doorbell.connect())
    doorbell.wake()
    doorbell.wake()
    assert seconds_of_a_wait(listener, 60) < 30
    assert seconds_of_a_wait(listener, 0.01) >= 0.01  # both were heard


def test_a_ring_ends_a_wait(doorbell: WakePipe) -> None:
    listener = WakePipeReader(doorbell.connect())
    waits = threading.Thread(target=listener.wait, args=(60,))
    waits.start()
    doorbell.wake()
    waits.join(30)
    assert not waits.is_alive()


def test_when_nobody_can_ring_any_more_waits_take_their_time(doorbell: WakePipe) -> None:
    listener = WakePipeReader(doorbell.connect())
    doorbell.disconnect()
    listener.wait(60)  # finds that out
    assert seconds_of_a_wait(listener, 0.01) >= 0.01


def test_ringing_where_nobody_listens_raises_nothing(doorbell: WakePipe) -> None:
    doorbell.wake()
    os.close(doorbell.connect())
    doorbell.wake()
    doorbell.disconnect()
    doorbell.wake()


def test_ringing_where_nobody_listens_raises_no_signal(doorbell: WakePipe) -> None:
    raised: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: raised.append(number))
    try:
        os.close(doorbell.connect())
        doorbell.wake()
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert not raised


def test_ringing_does_not_wait_for_who_does_not_listen(doorbell: WakePipe) -> None:
    end = doorbell.connect()
    for _ in range(100_000):  # more than a pipe holds
        doorbell.wake()
    os.close(end)


def test_connecting_again_closes_the_first_pipe(doorbell: WakePipe) -> None:
    first = doorbell.connect()
    second = doorbell.connect()
    assert os.read(first, 1) == b""
    doorbell.wake()
    assert os.read(second, 1) == b"!"


def test_a_standard_input_that_is_closed_is_no_bell() -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    listener = WakePipeReader(read)
    listener.wait(60)
    assert seconds_of_a_wait(listener, 0.01) >= 0.01

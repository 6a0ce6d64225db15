"""The bounded queue: overflow policies, the limit in bytes, and exact counts."""

from __future__ import annotations

import signal
import sys
import threading
import time
from functools import partial
from typing import Literal

import pytest

from metricbus._common.records import Call
from metricbus._common.settings import Overflow
from metricbus._ingest.queue import (
    BYTES_PER_VALUE,
    CallQueue,
    Command,
    QueueLimits,
    count_call_values,
)
from metricbus.errors import ClosedError
from tests.helpers.interrupts import interrupt_at
from tests.helpers.limits import HANG_SECS


def call(number: float) -> Call:
    return ("x", number, 0, 0, 0)


def start_waiting(queue: CallQueue, secs: float) -> threading.Event:
    """Start a thread that waits like the collector. The event is set when it wakes up."""
    woken = threading.Event()

    def wait() -> None:
        queue.wait(secs)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    return woken


def numbers(queue: CallQueue) -> list[float]:
    return [taken[1] for taken in queue.take(10**6) if not isinstance(taken, Command)]


def test_queue_keeps_the_order_of_calls() -> None:
    queue = CallQueue(QueueLimits())
    for number in range(5):
        queue.put(call(number))
    assert numbers(queue) == [0, 1, 2, 3, 4]


def test_drop_newest_keeps_the_first_and_counts_the_rest() -> None:
    queue = CallQueue(QueueLimits(calls=3, overflow="drop_newest"))
    for number in range(10):
        queue.put(call(number))
    assert numbers(queue) == [0, 1, 2]
    assert queue.dropped == 7


def test_drop_oldest_keeps_the_last_and_counts_the_rest() -> None:
    queue = CallQueue(QueueLimits(calls=3, overflow="drop_oldest"))
    for number in range(10):
        queue.put(call(number))
    assert numbers(queue) == [7, 8, 9]
    assert queue.dropped == 7


def test_block_waits_once_and_then_drops_until_the_queue_is_empty() -> None:
    queue = CallQueue(QueueLimits(calls=2, overflow="block", block_secs=0.2))
    queue.put(call(0))
    queue.put(call(1))
    started = time.monotonic()
    queue.put(call(2))
    waited = time.monotonic() - started
    started = time.monotonic()
    for number in range(3, 1003):
        queue.put(call(number))
    assert waited >= 0.2 > time.monotonic() - started
    assert queue.dropped == 1001
    assert numbers(queue) == [0, 1]
    queue.put(call(5))
    assert numbers(queue) == [5]


def test_block_accepts_the_call_once_there_is_room() -> None:
    queue = CallQueue(QueueLimits(calls=1, overflow="block", block_secs=30))
    queue.put(call(0))
    taker = threading.Timer(0.05, lambda: queue.take(1))
    taker.start()
    queue.put(call(1))
    taker.join()
    assert numbers(queue) == [1]
    assert queue.dropped == 0


@pytest.mark.parametrize("overflow", ["block", "drop_newest", "drop_oldest"])
def test_commands_pass_a_full_queue_and_are_never_dropped(
    overflow: Literal["block", "drop_newest", "drop_oldest"],
) -> None:
    queue = CallQueue(QueueLimits(calls=2, overflow=overflow, block_secs=0))
    first, second = Command(), Command()
    queue.put_command(first)
    for number in range(5):
        queue.put(call(number))
    queue.put_command(second)
    for number in range(5):
        queue.put(call(number))
    commands = [taken for taken in queue.take(100) if isinstance(taken, Command)]
    assert commands == [first, second]


def test_mappings_are_limited_in_bytes() -> None:
    queue = CallQueue(QueueLimits(nbytes=10 * BYTES_PER_VALUE, overflow="drop_newest"))
    row = {f"x{i}": 1.0 for i in range(4)}
    for _ in range(5):
        queue.put_row((dict(row), 0, 0, 0, 0), len(row))
    assert queue.waiting() == 8
    assert queue.dropped == 12


def test_closed_queue_drops_and_counts_calls() -> None:
    queue = CallQueue(QueueLimits())
    queue.put(call(0))
    queue.close()
    queue.put(call(1))
    queue.put_row(({"a": 1.0, "b": 2.0}, 0, 0, 0, 0), 2)
    assert numbers(queue) == [0]
    assert queue.dropped_after_close == 3


def test_closed_queue_raises_under_strict() -> None:
    queue = CallQueue(QueueLimits(), strict=True)
    queue.close()
    with pytest.raises(ClosedError, match="log before close"):
        queue.put(call(1))
    assert queue.dropped_after_close == 1


def test_command_submitted_after_close_is_done_at_once() -> None:
    queue = CallQueue(QueueLimits())
    queue.close()
    command = Command()
    queue.put_command(command)
    assert command.done.wait(0)


def test_interrupted_wait_for_a_command_does_not_block_the_collector() -> None:
    point = 0
    command = Command()
    while interrupt_at(partial(command.done.wait, 0.0001), point):
        executor = threading.Thread(target=command.done.set, daemon=True)
        executor.start()
        executor.join(30)
        assert not executor.is_alive()
        command, point = Command(), point + 1
    assert point > 10


def test_all_threads_that_wait_for_a_command_are_woken() -> None:
    command = Command()
    results: list[bool] = []
    waiters = [
        threading.Thread(target=lambda: results.append(command.done.wait(HANG_SECS)))
        for _ in range(4)
    ]
    for waiter in waiters:
        waiter.start()
    command.done.set()
    for waiter in waiters:
        waiter.join(30)
    assert results == [True] * 4


@pytest.mark.parametrize("overflow", ["block", "drop_newest", "drop_oldest"])
def test_counts_add_up_under_16_threads(
    overflow: Literal["block", "drop_newest", "drop_oldest"],
) -> None:
    queue = CallQueue(QueueLimits(calls=500, overflow=overflow, block_secs=0.01))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    running = True
    taken = 0

    def collect() -> None:
        nonlocal taken
        while running or queue.calls:
            taken += sum(map(count_call_values, queue.take(64)))
            time.sleep(1e-4)

    def produce() -> None:
        row = {"a": 1.0, "b": 2.0, "c": 3.0}
        for number in range(1000):
            queue.put(call(number))
            queue.put_row((dict(row), 0, 0, 0, 0), 3)

    collector = threading.Thread(target=collect)
    producers = [threading.Thread(target=produce) for _ in range(16)]
    try:
        collector.start()
        for producer in producers:
            producer.start()
        for producer in producers:
            producer.join()
    finally:
        running = False
        collector.join()
        sys.setswitchinterval(interval)
    assert taken + queue.dropped == 16 * 1000 * 4
    assert queue.dropped > 0


def test_a_signal_handler_may_log_at_any_point() -> None:
    queue = CallQueue(QueueLimits(calls=100, overflow="drop_newest"))
    handled = 0

    def handler(signum: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        queue.put(call(-1))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    taken = put = 0
    try:
        while handled < 200:
            for number in range(300):
                queue.put(call(number))
                put += 1
            taken += len(queue.take(1000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    taken += len(queue.take(1000))
    assert taken + queue.dropped == put + handled


def test_collector_sleeps_until_the_first_call() -> None:
    queue = CallQueue(QueueLimits())
    woken = start_waiting(queue, 0.01)
    assert not woken.wait(0.2)
    queue.put(call(0))
    assert woken.wait(10)


def test_full_batch_wakes_the_collector() -> None:
    queue = CallQueue(QueueLimits(batch_size=10))
    woken = start_waiting(queue, 1000)
    for number in range(12):
        queue.put(call(number))
    assert woken.wait(10)


def test_flush_bytes_wakes_the_collector() -> None:
    queue = CallQueue(QueueLimits(flush_bytes=10 * BYTES_PER_VALUE))
    woken = start_waiting(queue, 1000)
    for _ in range(2):
        queue.put_row(({f"x{i}": 1.0 for i in range(100)}, 0, 0, 0, 0), 100)
    assert woken.wait(10)


def test_flush_request_wakes_the_collector_at_once() -> None:
    queue = CallQueue(QueueLimits())
    woken = start_waiting(queue, 1000)
    queue.put(call(0))
    queue.request_flush()
    assert woken.wait(10)


def test_values_of_a_command_to_a_closed_queue_are_counted_once() -> None:
    class CommandWithValue(Command):
        values = 1

    queue = CallQueue(QueueLimits())
    queue.close()
    queue.put_command(CommandWithValue(), request_flush=False)
    assert (queue.dropped_after_close, queue.waiting()) == (1, 0)


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_wrong_estimate_of_bytes_on_an_empty_queue_raises_nothing(overflow: Overflow) -> None:
    queue = CallQueue(QueueLimits(nbytes=1000, overflow=overflow))
    queue.nbytes = 5000  # racing threads can leave such an estimate behind
    queue.put_row(({"x": 1.0}, 1.0, 0, 0, 0), 1)
    assert len(queue.calls) + queue.dropped == 1
    queue.take(10)
    queue.wait(0.0, idle_secs=0.0)
    queue.put_row(({"x": 1.0}, 1.0, 0, 0, 0), 1)
    assert len(queue.calls) == 1

"""The bounded queue between the training loop and the collector.

`Recorder.log` inlines `put`, because a function call would double its cost:

    queue.calls.append(call)
    if len(queue.calls) > queue.high_water_mark[0]:
        queue.on_high_water()

Appending to a deque is atomic and takes no lock, so signal handlers and finalizers can log at any
point. The collector is not woken for every call. `high_water_mark` is the length above which the
next call wakes it: 0 while it sleeps on an empty queue, the batch size while it waits for a batch,
and the queue's limit while it works. The mark is a list of one number, and each phase of the
collector uses a new list: a producer that was suspended while it raised an old mark cannot
overwrite the current one.

The size in bytes is an estimate. Racing threads can make it slightly wrong until the queue is next
empty. The counts of values are exact: they change in single statements without a call, which
CPython's GIL does not interrupt. A test checks this with 16 threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from metricbus._common.media_base import EncodeJob, JobQueue, LogContext
from metricbus._common.records import Call
from metricbus._common.settings import Overflow
from metricbus._common.wakeup import Event, Wakeup
from metricbus.errors import ClosedError

_log = logging.getLogger("metricbus.queue")


class DeferredCall(NamedTuple):
    """A call with a mapping in which some values are still on a device."""

    row: dict[str, Any]
    weight: float
    step: int
    epoch: int
    time: int


BYTES_PER_VALUE = 128
"""Approximate memory of a queued value: its share of a tuple, a number, a dict entry."""


class QueueLimits(NamedTuple):
    """The size of the queue, the policy when it is full, and what wakes the collector early."""

    calls: int = 65_536
    nbytes: int = 64 << 20
    overflow: Overflow = "block"
    block_secs: float = 5.0
    batch_size: int = 1024
    flush_bytes: int = 1 << 20


@dataclass(eq=False)
class Command:
    """A request to the collector, queued in order with the calls and never dropped.

    `done` is set when everything queued before it has been processed, and the command executed.
    """

    done: Event = field(default_factory=Event, init=False)
    values = 0  # that the command carries


class CallQueue:
    """A bounded first-in, first-out queue of calls and commands.

    `taken` counts the values that the collector took out of the queue, `dropped` those dropped
    because it was full, and `dropped_after_close` those logged after `close()` or `abandon()`.
    """

    def __init__(self, limits: QueueLimits, *, strict: bool = False) -> None:
        self.calls: deque[Call | Command] = deque()
        self.high_water_mark = [0]
        self.nbytes = 0
        self.taken = 0
        self.dropped = 0
        self.dropped_after_close = 0
        self.media: JobQueue | None = None
        self._limits = limits
        self._flush_bytes = min(limits.flush_bytes, limits.nbytes)
        self._strict = strict
        self._is_closed = False
        self._closed_by = "close()"
        # Set after the `block` policy has timed out: no call blocks again until the queue is empty.
        self._has_timed_out = False
        self._flush_requested = False
        self._wakeup = Wakeup()
        # Only between the collector and readers of the counts; a signal handler may be a reader.
        self._count_lock = threading.RLock()
        self._collector_thread = 0

    @property
    def is_closed(self) -> bool:
        """Whether further calls are rejected."""
        return self._is_closed

    def put(self, call: Call | Command) -> None:
        """Append a call. `Recorder.log` inlines this."""
        self.calls.append(call)
        if len(self.calls) > self.high_water_mark[0]:
            self.on_high_water()

    def put_row(self, call: Call, values: int) -> None:
        """Append a mapping's call and add its size to `nbytes`."""
        nbytes = values * BYTES_PER_VALUE
        self.nbytes += nbytes
        self.calls.append(call)
        if len(self.calls) > self.high_water_mark[0] or self.nbytes > self._flush_bytes:
            self.on_high_water()

    def put_command(self, command: Command, *, request_flush: bool = True) -> None:
        """Append a command regardless of the limits. Wake the collector if `request_flush`."""
        self.calls.append(command)
        if self._is_closed:
            self._withdraw(command)
        if request_flush:
            self.request_flush()
        elif len(self.calls) > self.high_water_mark[0]:
            self.on_high_water()

    def _withdraw(self, command: Command) -> None:
        """Remove a command from the closed queue, unless the collector has already taken it."""
        try:
            self.calls.remove(command)
        except ValueError:
            return
        self.dropped_after_close += command.values
        command.done.set()

    def put_medium(self, context: LogContext, job: EncodeJob) -> None:
        """Submit a medium to the media worker. Raises `ClosedError` like `on_high_water`."""
        assert self.media is not None
        self.media.put(context, job)
        self._raise_if_closed()

    def request_flush(self) -> None:
        """Make the collector process the queue now instead of waiting for a batch."""
        self._flush_requested = True
        self._wakeup.wake()

    def on_high_water(self) -> None:
        """Wake the collector and enforce the limits, after a call has passed `high_water_mark`.

        On a closed queue, drop the new call; under `strict`, also raise `ClosedError`.
        """
        high_water_mark = self.high_water_mark
        if self._is_closed:
            self._drop_after_close()
            return
        if self._is_full():
            self._apply_overflow_policy()
        if high_water_mark[0] < self._limits.calls:
            # Waking comes first: an interrupt in between only causes another wake-up.
            self._wakeup.wake()
            high_water_mark[0] = self._limits.calls

    def close(self) -> None:
        """Reject further calls. The collector calls this, and then takes the remaining calls."""
        self._is_closed = True
        self.high_water_mark = [-1]

    def abandon(self) -> None:
        """Close the queue after an internal error: calls are dropped, and no call raises."""
        self._strict = False
        self._closed_by = "an internal error"
        self.close()

    def waiting(self) -> int:
        """Return the number of values in the queue."""
        return sum(map(count_call_values, self.calls.copy()))

    def counts(self) -> tuple[int, int]:
        """Return the numbers of values that were taken out of the queue, and that are in it."""
        with self._count_lock:
            return self.taken, self.waiting()

    def wait(self, secs: float, *, idle_secs: float | None = None) -> None:
        """Block the collector for `secs`, or until a batch is full or a flush is requested.

        First wait for a call while the queue is empty, for at most `idle_secs` (None: no limit).
        """
        self._collector_thread = threading.get_ident()
        self.high_water_mark = [0]
        if not self.calls and not self._flush_requested:
            self._has_timed_out = False
            self.nbytes = 0
            self._wakeup.wait(idle_secs)
            if not self.calls:
                return
        self.high_water_mark = [min(self._limits.batch_size, self._limits.calls)]
        batch_is_full = len(self.calls) > self.high_water_mark[0] or self.nbytes > self._flush_bytes
        if not self._flush_requested and not batch_is_full:
            self._wakeup.wait(secs)
        self._flush_requested = False
        self.high_water_mark = [self._limits.calls]

    def pause(self, secs: float) -> None:
        """Block the collector for `secs`, or until a flush is requested, before it retries."""
        deadline = time.monotonic() + secs
        self.high_water_mark = [self._limits.calls]
        while not self._flush_requested and (remaining := deadline - time.monotonic()) > 0:
            self._wakeup.wait(remaining)
        self._flush_requested = False

    def take(self, limit: int) -> list[Call | Command]:
        """Remove and return up to `limit` of the oldest entries. Only the collector calls this."""
        taken: list[Call | Command] = []
        popleft = self.calls.popleft
        with self._count_lock:
            try:
                for _ in range(limit):
                    taken.append(popleft())
            except IndexError:
                self._has_timed_out = False
            self.taken += sum(map(count_call_values, taken))
        if self.nbytes:
            nbytes = sum(map(_estimate_nbytes, taken))
            self.nbytes -= nbytes
        return taken

    def _is_full(self) -> bool:
        return len(self.calls) > self._limits.calls or self.nbytes > self._limits.nbytes

    def _raise_if_closed(self) -> None:
        if self._is_closed and self._strict:
            raise ClosedError("the bus is closed; log before close(), or create a new MetricBus")

    def _drop_after_close(self) -> None:
        try:
            while isinstance(call := self.calls.pop(), Command):
                self.dropped_after_close += call.values
                call.done.set()
        except IndexError:  # the collector has taken it
            return
        self.drop_after_close(call[0], count_call_values(call))

    def drop_after_close(self, what: object, values: int = 1) -> None:
        """Count what was logged after `close()`. Warn the first time; raise if `strict`."""
        if not self.dropped_after_close:
            _log.warning("%r was logged after %s and is dropped", what, self._closed_by)
        self.dropped_after_close += values
        self._raise_if_closed()

    def _apply_overflow_policy(self) -> None:
        """Enforce the limits. The new call is already in the queue."""
        # A finalizer can log on the collector's own thread, which must not wait for itself.
        is_collector = threading.get_ident() == self._collector_thread
        if self._limits.overflow == "block" and not self._has_timed_out and not is_collector:
            self._wakeup.wake()
            deadline = time.monotonic() + self._limits.block_secs
            # Polling, because a signal handler could deadlock on a lock.
            while self._is_full() and time.monotonic() < deadline:
                time.sleep(0.001)
            if not self._is_full():
                return
            self._has_timed_out = True
        self._drop_until_within_limits()

    def _drop_until_within_limits(self) -> None:
        """Drop calls, the oldest or the newest first, but no commands."""
        oldest_first = self._limits.overflow == "drop_oldest"
        pop = self.calls.popleft if oldest_first else self.calls.pop
        commands: list[Command] = []
        while self._is_full():
            try:
                call = pop()
            except IndexError:  # the collector has emptied the queue
                break
            if isinstance(call, Command):
                commands.append(call)
                continue
            dropped, nbytes = count_call_values(call), _estimate_nbytes(call)
            self.dropped += dropped
            self.nbytes -= nbytes
        put_back = self.calls.extendleft if oldest_first else self.calls.extend
        put_back(reversed(commands))
        if self._is_closed:
            for command in commands:
                self._withdraw(command)


def count_call_values(call: Call | Command) -> int:
    """Return the number of values that a call or a command carries."""
    if isinstance(call, Command):
        return call.values
    return 1 if isinstance(call[0], str) else len(call[0])


def _estimate_nbytes(call: Call | Command) -> int:
    if isinstance(call, Command) or isinstance(call[0], str):
        return 0  # single values are limited by their number
    return len(call[0]) * BYTES_PER_VALUE

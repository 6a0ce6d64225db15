"""The bounded buffer between the training loop and the collector.

The caller's side is two steps, which `MetricBus.log` takes itself because a function call would
cost as much again:

    queue.calls.append(call)
    if len(queue.calls) > queue.alarm[0]: queue.crowded()

Appending to a deque is atomic, and nothing is locked, so a signal handler or a garbage collection
may log at any point. The collector is not signalled per call: `high_water_mark` is the length at which it
wants to hear of the next one. That is 0 while it sleeps for want of calls, the batch size while it
waits for a batch, and the queue's bound while it works. It is a list of one number, a new list for
each rest of the collector: a producer that was held up while it marked an old alarm as gone off
cannot silence the next.

The bound in bytes is an estimate that racing threads can make slightly wrong until the queue next
runs empty. The counts of values are exact: they change by single statements without a call in
them, which CPython's interpreter lock does not divide, and tests show it with 16 threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Literal, NamedTuple, TypeAlias

from metricbus._common.media_base import EncodeJob, Encoder, LogContext
from metricbus._common.records import Call
from metricbus._common.wakeup import Event, Wakeup
from metricbus.errors import ClosedError

_log = logging.getLogger("metricbus.queue")

Overflow: TypeAlias = Literal["block", "drop_newest", "drop_oldest"]


class Deferred(NamedTuple):
    """The call of a mapping some of whose values are still to come over from a device."""

    row: dict[str, Any]
    weight: float
    step: int
    epoch: int
    time: int


BYTES_A_VALUE = 128
"""What a waiting value takes in memory, about: its share of a tuple, a number, a table entry."""


class Bounds(NamedTuple):
    """How much may wait, what happens beyond it, and what wakes the collector early."""

    calls: int = 65_536
    nbytes: int = 64 << 20
    overflow: Overflow = "block"
    block_secs: float = 5.0
    batch_size: int = 1024
    flush_bytes: int = 1 << 20


class Control:
    """Something that is not a value and is never dropped: the collector obeys it in its turn.

    `done` is set when everything before it is in the journal. `values` is what it brings along.
    """

    values = 0

    def __init__(self) -> None:
        self.done = Event()


class CallQueue:
    """The calls that wait, in their order, with a policy for too many of them."""

    def __init__(self, bounds: Bounds, *, strict: bool = False) -> None:
        self.calls: deque[Call | Control] = deque()
        self.high_water_mark = [0]
        self.nbytes = 0
        self.dropped = 0  # met a full queue
        self.dropped_late = 0  # met a closed one
        self.media: Encoder | None = None
        self._bounds = bounds
        self._alarm_bytes = min(bounds.flush_bytes, bounds.nbytes)
        self._strict = strict
        self._closed = False
        self._gave_up = False  # the `block` policy has waited in vain; no second wait until empty
        self._hurry = False
        self._bell = Wakeup()
        self._collector = 0  # its thread

    def put(self, call: Call | Control) -> None:
        """Appends; what `MetricBus.log` does in place, for everybody else."""
        self.calls.append(call)
        if len(self.calls) > self.high_water_mark[0]:
            self.on_high_water()

    def put_row(self, call: Call, values: int) -> None:
        """Appends a mapping's call, counting its bytes."""
        nbytes = values * BYTES_A_VALUE
        self.nbytes += nbytes
        self.calls.append(call)
        if len(self.calls) > self.high_water_mark[0] or self.nbytes > self._alarm_bytes:
            self.on_high_water()

    def put_control(self, control: Control, *, request_flush: bool = True) -> None:
        """Appends past every bound; wakes the collector at once, or when it next works."""
        self.calls.append(control)
        if self._closed:  # nobody takes it any more, and there is nothing to wait for
            self._take_back(control)
        if request_flush:
            self.request_flush()
        elif len(self.calls) > self.high_water_mark[0]:
            self.on_high_water()

    def _take_back(self, control: Control) -> None:
        """Out of a closed queue, unless the collector was faster, and will obey."""
        try:
            self.calls.remove(control)
        except ValueError:
            return
        self.dropped_late += control.values
        control.done.set()

    def put_medium(self, stamp: LogContext, taken: EncodeJob) -> None:
        """Hands a medium to the worker that encodes it; `ClosedError` as for values."""
        assert self.media is not None
        self.media.put(stamp, taken)
        if self._closed and self._strict:
            raise ClosedError("the bus is closed; log before close(), or make a new MetricBus")

    def request_flush(self) -> None:
        """Makes the collector work now instead of waiting for more."""
        self._hurry = True
        self._bell.ring()

    def on_high_water(self) -> None:
        """The queue is longer than `high_water_mark`: wake the collector, and hold the bound.

        On a closed queue the new call is dropped; `ClosedError` says so under `strict`.
        """
        high_water_mark = self.high_water_mark
        if self._closed:
            self._refuse()
            return
        if self._is_over():
            self._overflow()
        if high_water_mark[0] < self._bounds.calls:
            self._bell.ring()
            high_water_mark[0] = (
                self._bounds.calls
            )  # it has gone off; interrupted before, it does so again

    def close(self) -> None:
        """From now on nothing gets in. For the collector, which takes what is left afterwards."""
        self._closed = True
        self.high_water_mark = [-1]

    def waiting(self) -> int:
        """The number of values in the queue now."""
        return sum(map(values_in, self.calls.copy()))

    def wait(self, secs: float, *, idle_secs: float | None = None) -> None:
        """The collector's rest: until the first call is `secs` old, a batch is full, or a hurry.

        Without calls it sleeps for `idle_secs`, or for good; the next call wakes it.
        """
        self._collector = threading.get_ident()
        self.high_water_mark = [0]
        if not self.calls and not self._hurry:
            self._gave_up = False
            self.nbytes = 0
            self._bell.wait(idle_secs)
            if not self.calls:
                return
        self.high_water_mark = [min(self._bounds.batch_size, self._bounds.calls)]
        batch_is_full = len(self.calls) > self.high_water_mark[0] or self.nbytes > self._alarm_bytes
        if not self._hurry and not batch_is_full:
            self._bell.wait(secs)
        self._hurry = False
        self.high_water_mark = [self._bounds.calls]

    def pause(self, secs: float) -> None:
        """Waits like `wait`, but only a hurry ends it: for retrying what cannot be written."""
        deadline = time.monotonic() + secs
        self.high_water_mark = [self._bounds.calls]
        while not self._hurry and (left := deadline - time.monotonic()) > 0:
            self._bell.wait(left)
        self._hurry = False

    def take(self, limit: int) -> list[Call | Control]:
        """Up to `limit` of the oldest calls, in order; for the collector alone."""
        taken: list[Call | Control] = []
        popleft = self.calls.popleft
        try:
            for _ in range(limit):
                taken.append(popleft())
        except IndexError:
            self._gave_up = False
        if self.nbytes:
            gone = sum(map(_nbytes_of, taken))
            self.nbytes -= gone
        return taken

    def _is_over(self) -> bool:
        return len(self.calls) > self._bounds.calls or self.nbytes > self._bounds.nbytes

    def _refuse(self) -> None:
        try:
            while isinstance(call := self.calls.pop(), Control):
                self.dropped_late += call.values
                call.done.set()
        except IndexError:  # the collector took it along
            return
        dropped = values_in(call)
        if not self.dropped_late:
            _log.warning(
                "metricbus: %r was logged after close(); it is counted as dropped", call[0]
            )
        self.dropped_late += dropped
        if self._strict:
            raise ClosedError("the bus is closed; log before close(), or make a new MetricBus")

    def _overflow(self) -> None:
        """Holds the bound by its policy. The new call is in the queue already."""
        by_collector = threading.get_ident() == self._collector  # in a finaliser, say
        if self._bounds.overflow == "block" and not self._gave_up and not by_collector:
            self._bell.ring()
            deadline = time.monotonic() + self._bounds.block_secs
            while self._is_over() and time.monotonic() < deadline:
                time.sleep(0.001)  # polling, because a lock here could meet a signal handler
            if not self._is_over():
                return
            self._gave_up = True
        self._drop()

    def _drop(self) -> None:
        """Drops calls, oldest or newest first, until the bound holds; controls are spared."""
        oldest_first = self._bounds.overflow == "drop_oldest"
        take = self.calls.popleft if oldest_first else self.calls.pop
        spared: list[Control] = []
        while self._is_over():
            try:
                call = take()
            except IndexError:  # the collector was faster
                break
            if isinstance(call, Control):
                spared.append(call)
                continue
            dropped, nbytes = values_in(call), _nbytes_of(call)
            self.dropped += dropped
            self.nbytes -= nbytes
        restore_partials = self.calls.extendleft if oldest_first else self.calls.extend
        restore_partials(reversed(spared))
        if self._closed:
            for control in spared:
                self._take_back(control)


def values_in(call: Call | Control) -> int:
    """How many values a call carries."""
    if isinstance(call, Control):
        return call.values
    what = call[0]
    return 1 if isinstance(what, str) else len(what)


def _nbytes_of(call: Call | Control) -> int:
    if isinstance(call, Control) or isinstance(call[0], str):
        return 0  # single values are bounded by their number
    return len(call[0]) * BYTES_A_VALUE

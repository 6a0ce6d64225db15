"""The collector: the one thread that turns queued calls into records and writes them down.

A pass takes calls from the queue in chunks (larger ones when many wait), applies the definitions,
joins what they give into rows, and appends each chunk to the journal in one write. Between chunks
it lets go of the interpreter, so that the training loop never waits for it longer than a chunk
takes.

When the journal cannot be written (a full disk), the rows of that chunk are kept and tried again;
the queue is left alone meanwhile, and its policy decides what becomes of new calls.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from metricbus._aggregate.aggregator import Aggregator, Emission
from metricbus._aggregate.cross_rank import MergedValue
from metricbus._aggregate.row_builder import join_calls, join_emissions
from metricbus._common.records import (
    Call,
    Dropped,
    DroppedCounts,
    PartialAggregates,
    Record,
    Status,
    count_values,
    with_rank,
)
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._common.wakeup import yield_gil
from metricbus._ingest.commands import (
    Append,
    ApplyRewind,
    BeginEpoch,
    CollectPartials,
    Define,
    EndEpoch,
    Flush,
    PublishMerged,
    RestorePartials,
    SavePartials,
    Snapshot,
    Stop,
)
from metricbus._ingest.device_fetch import DeviceFetcher
from metricbus._ingest.queue import CallQueue, Command, Deferred, count_call_values
from metricbus._journal.segment_writer import Journal

_log = logging.getLogger("metricbus.journal")

_CHUNK = 256  # calls, which hold the interpreter for a fraction of a millisecond
_LARGEST_CHUNK = 2048
_CHUNKS_BEHIND = 16
_CHUNK_BYTES = 1 << 20  # of mappings, by the queue's estimate
_RETRY_SECS = 1.0
_CHECKPOINT_EVERY = 5.0
_VALUES_ALONE = frozenset((tuple,))


class Listener(Protocol):
    """Who wants to know of the journal."""

    def wake(self) -> None:
        """It has grown."""

    def end(self, status: Status) -> None:
        """It has been ended."""


class Collector:
    """Moves calls from `queue` to `journal`, and tells `listener` of it."""

    def __init__(
        self,
        queue: CallQueue,
        journal: Journal,
        flush_secs: float,
        listener: Listener,
        *,
        rank: int = 0,
        several: bool = False,
    ) -> None:
        """The records are marked with the `rank` where `several` ranks write."""
        self.aggregator = Aggregator()
        self.taken = 0  # values taken out of the queue
        self.journalled = 0  # values in the journal
        self._unwritable = 0  # values that no journal can hold; a fault of ours
        self.written = 0  # bytes of the segment that count
        self.error: str | None = None
        self._queue = queue
        self._journal = journal
        self._flush_secs = flush_secs
        self._listener = listener
        self.rank = rank
        self.is_of_several = several
        self.dropped_media: Callable[[], int] = lambda: 0
        self._told_dropped = 0
        self._wrote_dropped = DroppedCounts()
        self._wrote_dropped_at = -math.inf
        self._checkpointed = time.monotonic()
        self._checkpointed_at = 0
        self._complaints = ThrottledLogger(_log)
        self.device_fetcher = DeviceFetcher(queue, self._complaints)
        self._thread = threading.Thread(target=self._run, name="metricbus-collector", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def unwritable(self) -> int:
        """Values that no device gave, or that no journal can hold."""
        return self._unwritable + self.device_fetcher.lost

    @property
    def segment(self) -> str:
        """The segment that this collector writes."""
        return self._journal.segment

    def submit_and_wait(self, control: Command, timeout: float) -> bool:
        """Waits until what was logged before is in the journal; whether it is."""
        self._queue.put_command(control)
        return control.done.wait(min(timeout, threading.TIMEOUT_MAX))

    def _run(self) -> None:
        stop = None
        while stop is None:
            self._queue.wait(self._flush_secs, idle_secs=self._checkpoint_due())
            while stop is None and (calls := self._queue.take(self._chunk())):
                stop = self._collect(calls)
                yield_gil()
            self._checkpoint()
            self._tell_dropped()
            self._write_dropped()
        self._queue.close()
        while calls := self._queue.take(_CHUNK):
            again = self._collect(calls)
            if again is not None:
                again.done.set()
        self._tell_unmet()
        self._emit(self.aggregator.end_epoch(ranks=True)[0])
        for axis in self.aggregator.unknown_axes():
            _log.warning("the axis %r was never logged: what has it stands on the step", axis)
        self._close(stop)

    def _chunk(self) -> int:
        """How many calls to take: more when many wait.

        A thread that never lets go of the interpreter gives it up for a chunk in every 10 ms.
        """
        waiting, nbytes = len(self._queue.calls), self._queue.nbytes
        chunk = min(max(_CHUNK, waiting // _CHUNKS_BEHIND), _LARGEST_CHUNK)
        if nbytes > _CHUNK_BYTES:
            chunk = min(chunk, max(1, waiting * _CHUNK_BYTES // nbytes))
        return chunk

    def _collect(self, calls: list[Call | Command]) -> Stop | None:
        """Journals a chunk and obeys the controls in it, in turn; the one that says to stop."""
        if _VALUES_ALONE.issuperset(map(type, calls)):  # as nearly always
            self._take(cast(list[Call], calls))
            return None
        stop = None
        values: list[Call] = []
        self.taken += sum(map(count_call_values, calls))  # all: a control may have to wait for the disk
        self.device_fetcher.bring(calls)
        for call in calls:
            if isinstance(call, Deferred):
                values += self.device_fetcher.resolved(call)
                continue
            if not isinstance(call, Command):
                values.append(call)
                continue
            self._take(values, counted=True)
            values = []
            if isinstance(call, Stop) and stop is None:
                stop = call
            else:
                self._obey(call)
                call.done.set()
        self._take(values, counted=True)
        return stop

    def _obey(self, control: Command) -> None:
        if isinstance(control, Flush):
            if isinstance(control, SavePartials):
                self._write_open()
            self._journal.sync()
        elif isinstance(control, Define):
            self._emit(self.aggregator.define(control.definition, control.default))
        elif isinstance(control, Snapshot):
            control.state = self.aggregator.state()
            control.place = (self._journal.segment, self._journal.lines)
        elif isinstance(control, ApplyRewind):
            self._emit(self.aggregator.end_epoch(ranks=True)[0])
            if control.record is not None:
                self._append([control.record])
            self.aggregator.restore(control.state)
            self.device_fetcher.newest.clear()
        elif isinstance(control, Append):
            self._append([self.aggregator.marked(record) for record in control.records])
        elif isinstance(control, BeginEpoch):
            self._append([control.record])
        elif isinstance(control, CollectPartials):
            if control.claim():
                control.parts = self.aggregator.take_across()
        elif isinstance(control, RestorePartials):
            self.aggregator.restore_partials(control.parts)
        elif isinstance(control, PublishMerged):
            if control.here:
                epoch, ended = control.epoch, control.ended
                self._emit(self.aggregator.merged(self._arrived(control), epoch, ended=ended))
        elif isinstance(control, EndEpoch):
            emissions, control.results = self.aggregator.end_epoch()
            self._emit(emissions)
            if control.record.seconds is not None:
                self._append([control.record])

    def _arrived(self, control: PublishMerged) -> list[MergedValue]:
        """What was computed on a device may still be there; what that does not give is left out."""
        found = []
        for one in control.results:
            number = self.device_fetcher.number(one.name, one.step, one.value)
            if number is not None:
                found.append(one._replace(value=number))
                self.aggregator.newest[one.emitted_as] = number
        return found

    def _take(self, calls: list[Call], *, counted: bool = False) -> None:
        if not calls:
            return
        if self.aggregator.definitions:
            if not counted:
                self.taken += sum(map(count_call_values, calls))
            self._emit(list(self.aggregator.take(calls)))
        else:
            rows = list(join_calls(calls))
            if not counted:
                self.taken += sum(map(count_values, rows))
            self._append(rows)

    def _emit(self, emissions: list[Emission]) -> None:
        if emissions:
            self._append(list(join_emissions(emissions)))

    def _checkpoint_due(self) -> float | None:
        """Seconds until open reductions are to be written down; None if there is nothing to do."""
        if self.aggregator.changes == self._checkpointed_at:
            return None
        return max(0.0, self._checkpointed + _CHECKPOINT_EVERY - time.monotonic())

    def _checkpoint(self) -> None:
        """Writes down what is open, so that it comes out as partial if this process dies."""
        if self._checkpoint_due() == 0.0:
            self._write_open()

    def _write_open(self) -> None:
        if self.aggregator.changes == self._checkpointed_at:
            return
        rows = list(join_emissions(self.aggregator.partial(), partial=True))
        self._checkpointed = time.monotonic()
        self._checkpointed_at = self.aggregator.changes
        rows = [with_rank(row, self.rank) for row in rows] if self.rank else rows
        self._append([PartialAggregates(time=time.time_ns(), rows=rows)])

    def _append(self, rows: Sequence[Record]) -> None:
        """Writes the rows, however long that takes; leaves out what cannot be written at all."""
        if self.rank:
            rows = [with_rank(row, self.rank) for row in rows]
        while True:
            try:
                self._journal.append(rows)
            except OSError as error:
                self.error = f"{type(error).__name__}: {error}"
                self._complaints.warn(
                    "the journal cannot be written, will try again: %s", self.error
                )
                self._queue.pause(_RETRY_SECS)
            except Exception as error:  # the thread must live on, whatever slipped through
                self._leave_out(rows, error)
                return
            else:
                break
        if self.error:
            _log.warning("the journal can be written again")
            self.error = None
        self.journalled += sum(map(count_values, rows))
        self.written = self._journal.length
        self._listener.wake()

    def _leave_out(self, rows: Sequence[Record], error: Exception) -> None:
        if len(rows) > 1:
            for row in rows:
                self._append([row])
            return
        values = sum(map(count_values, rows))
        self._unwritable += values
        self._complaints.warn("a row cannot be written and is dropped: %s", error)

    def _tell_unmet(self) -> None:
        """Of several ranks, nobody met at the end: that is not for `close()` to do."""
        names = self.aggregator.across_ranks()
        if names and self.is_of_several:
            _log.warning(
                "the ranks have not met since %s was logged: what is written at the end is of this "
                "rank alone; call bus.end_epoch() or bus.sync() on every rank before bus.close()",
                ", ".join(map(repr, names)),
            )

    def _close(self, stop: Stop) -> None:
        try:
            self._journal.close(stop.status, self._drops())
        except OSError as error:
            self.error = f"{type(error).__name__}: {error}"
        self.written = self._journal.length
        self._listener.end(stop.status)
        stop.done.set()

    def _drops(self) -> DroppedCounts:
        """What was dropped so far."""
        return DroppedCounts(
            queue=self._queue.dropped, media=self.dropped_media(), unwritable=self.unwritable
        )

    def _write_dropped(self) -> None:
        """Writes down what was dropped, now and then: a run that lives can tell, or has told."""
        drops, now = self._drops(), time.monotonic()
        if drops != self._wrote_dropped and now - self._wrote_dropped_at >= _CHECKPOINT_EVERY:
            self._wrote_dropped, self._wrote_dropped_at = drops, now
            self._append([Dropped(time=time.time_ns(), dropped=drops)])

    def _tell_dropped(self) -> None:
        dropped = self._queue.dropped
        if dropped > self._told_dropped and self._complaints.warn(
            "the queue is full: %s values were dropped so far", f"{dropped:,}"
        ):
            self._told_dropped = dropped

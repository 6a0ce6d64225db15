"""Background thread that drains the call queue into the journal.

Each pass takes a chunk of calls, applies the rules of `bus.define()`, groups the results into rows,
and appends them to the journal with a single write. The chunk size grows with the backlog. The
thread yields the GIL between chunks, which limits how long the training loop can wait for it.

If the journal cannot be written, for example because the disk is full, the collector keeps the
current chunk and retries. New calls stay in the queue, subject to its overflow policy.

After an internal error, the collector ends and nobody waits for it: it drops the values that are
not in the journal, and delivery ends with what is in the journal. The training continues.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, cast

from metricbus._aggregate.aggregator import Aggregator
from metricbus._aggregate.cross_rank import MergedValue
from metricbus._aggregate.row_builder import Emission, join_calls, join_emissions
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
from metricbus._ingest import commands
from metricbus._ingest.device_fetch import DeviceFetcher
from metricbus._ingest.queue import CallQueue, Command, DeferredCall
from metricbus._ingest.run_updates import RunUpdates
from metricbus._journal.segment_writer import Journal

_log = logging.getLogger("metricbus.journal")

# A chunk of this many calls holds the GIL for a fraction of a millisecond.
_CHUNK = 256
_LARGEST_CHUNK = 2048
_CHUNKS_PER_BACKLOG = 16
_CHUNK_BYTES = 1 << 20  # as the queue estimates them
_RETRY_SECS = 1.0
_CHECKPOINT_EVERY = 5.0  # seconds
_PLAIN_CALLS = frozenset((tuple,))


class JournalListener(Protocol):
    """What the collector notifies of changes to the journal."""

    def wake(self) -> None:
        """Handle that the journal has grown."""

    def end(self, status: Status) -> None:
        """Handle that the journal has been closed."""


class Collector:
    """Moves calls from `queue` to `journal`, and notifies `listener`.

    `journalled` counts the values in the journal, and `unwritable` those that no device returned or
    that the journal cannot hold. `written_bytes` is the length of the journal, `error` why it
    cannot be written at the moment. `is_broken` says whether an internal error has ended the
    collector.
    """

    def __init__(
        self,
        queue: CallQueue,
        journal: Journal,
        flush_secs: float,
        listener: JournalListener,
        *,
        rank: int = 0,
        is_multi_rank: bool = False,
    ) -> None:
        """Records are marked with `rank`. `is_multi_rank` says whether there are other ranks."""
        self.aggregator = Aggregator()
        self.journalled = 0
        self.written_bytes = 0
        self.error: str | None = None
        self.is_broken = False
        self.rank = rank
        self.dropped_media: Callable[[], int] = lambda: 0
        self.run_updates = RunUpdates(self.aggregator.definitions, self._append, rank)
        self._queue = queue
        self._journal = journal
        self._flush_secs = flush_secs
        self._listener = listener
        self._is_multi_rank = is_multi_rank
        self._chunk: list[Call | Command] = []
        self._stop: commands.Stop | None = None
        self._unwritable = 0
        self._reported_dropped = 0
        self._written_counts = DroppedCounts()
        self._counts_written_at = -math.inf
        self._partials_written_at = time.monotonic()
        self._written_changes = 0
        self._throttled_log = ThrottledLogger(_log)
        self.device_fetcher = DeviceFetcher(queue, self._throttled_log)
        self._thread = threading.Thread(target=self._run, name="metricbus-collector", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def unwritable(self) -> int:
        """Number of values that no device returned or that the journal cannot hold."""
        return self._unwritable + self.device_fetcher.lost

    @property
    def segment(self) -> str:
        """The segment that this collector writes."""
        return self._journal.segment

    def submit_and_wait(self, command: Command, timeout: float) -> bool:
        """Submit a command and wait until it is done. Return whether it was done in time."""
        self._queue.put_command(command)
        return command.done.wait(min(timeout, threading.TIMEOUT_MAX)) and not self.is_broken

    def _run(self) -> None:
        try:
            self._run_until_stopped()
        except BaseException as error:  # a programming error, or a logging handler that raises
            self._abandon(error)

    def _run_until_stopped(self) -> None:
        calls: list[Call | Command] = []
        while self._stop is None:
            if not calls:
                self._queue.wait(self._flush_secs, idle_secs=self._secs_until_checkpoint())
            calls = self._take(self._chunk_size())
            self._stop = self._process(calls)
            # After each chunk, because under load the queue may not become empty for a long time.
            if self._secs_until_checkpoint() == 0.0:
                self._write_partials()
            self._warn_dropped()
            self._write_dropped_counts()
            yield_gil()
        self._queue.close()
        while calls := self._take(_CHUNK):
            repeated_stop = self._process(calls)
            if repeated_stop is not None:
                repeated_stop.done.set()
        self._warn_unmerged()
        self._write_emissions(self.aggregator.end_epoch(cross_rank=True)[0])
        self.run_updates.write_best()
        for axis in self.aggregator.missing_axes():
            _log.warning("the axis %r was never logged; its series are placed at their steps", axis)
        self._close(self._stop)

    def _take(self, limit: int) -> list[Call | Command]:
        self._chunk = self._queue.take(limit)
        return self._chunk

    def _chunk_size(self) -> int:
        """Return how many calls to take next: more for a long queue, fewer for wide mappings.

        A training loop that never releases the GIL yields it for one chunk in every 10 ms, so short
        chunks would let the queue grow.
        """
        waiting, nbytes = len(self._queue.calls), self._queue.nbytes
        size = min(max(_CHUNK, waiting // _CHUNKS_PER_BACKLOG), _LARGEST_CHUNK)
        if nbytes > _CHUNK_BYTES:
            size = min(size, max(1, waiting * _CHUNK_BYTES // nbytes))
        return size

    def _process(self, calls: list[Call | Command]) -> commands.Stop | None:
        """Write a chunk and execute its commands in order; return the `Stop` command, if any."""
        # Nearly all chunks are plain calls only.
        if _PLAIN_CALLS.issuperset(map(type, calls)):
            self._write_calls(cast(list[Call], calls))
            return None
        stop = None
        plain_calls: list[Call] = []
        self.device_fetcher.fetch(calls)
        for call in calls:
            if isinstance(call, DeferredCall):
                plain_calls += self.device_fetcher.resolve(call)
                continue
            if not isinstance(call, Command):
                plain_calls.append(call)
                continue
            self._write_calls(plain_calls)
            plain_calls = []
            if isinstance(call, commands.Stop) and stop is None:
                stop = call
            else:
                self._execute(call)
                call.done.set()
        self._write_calls(plain_calls)
        return stop

    def _execute(self, command: Command) -> None:
        if isinstance(command, commands.Flush):
            if isinstance(command, commands.SavePartials):
                self._write_partials()
            self.run_updates.write_best()
            self._journal.sync()
        elif isinstance(command, commands.Define):
            self._write_emissions(self.aggregator.define(command.definition, command.default))
        elif isinstance(command, commands.Snapshot):
            command.state = self.aggregator.state()
            command.position = (self._journal.segment, self._journal.lines)
        elif isinstance(command, commands.ApplyRewind):
            self._write_emissions(self.aggregator.end_epoch(cross_rank=True)[0])
            if command.record is not None:
                self.run_updates.write_rewind(command.record)
            else:
                self.run_updates.forget_best()
            self.aggregator.restore(command.state)
            self.device_fetcher.newest.clear()
        elif isinstance(command, commands.Append):
            self._append([self.aggregator.route_medium(record) for record in command.records])
        elif isinstance(command, commands.UpdateRun):
            self.run_updates.write(command.record)
        elif isinstance(command, commands.BeginEpoch):
            self._append([command.record])
        elif isinstance(command, commands.CollectPartials):
            if command.claim():
                command.partials = self.aggregator.collect_partials()
        elif isinstance(command, commands.RestorePartials):
            self.aggregator.restore_partials(command.partials)
        elif isinstance(command, commands.PublishMerged):
            if command.is_writer:
                epoch, ends_epoch = command.epoch, command.ends_epoch
                results = self._resolve_merged(command.results)
                emissions = self.aggregator.emit_merged(results, epoch, ends_epoch=ends_epoch)
                self._write_emissions(emissions)
        elif isinstance(command, commands.EndEpoch):
            emissions, command.results = self.aggregator.end_epoch()
            self._write_emissions(emissions)
            if command.record.seconds is not None:
                self._append([command.record])

    def _resolve_merged(self, results: Sequence[MergedValue]) -> list[MergedValue]:
        """Replace device values by numbers. Skip those that cannot be copied to the host."""
        resolved = []
        for result in results:
            number = self.device_fetcher.number(result.name, result.step, result.value)
            if number is not None:
                resolved.append(result._replace(value=number))
                self.aggregator.newest[result.emitted_as] = number
        return resolved

    def _write_calls(self, calls: list[Call]) -> None:
        if not calls:
            return
        if self.aggregator.definitions:
            self._write_emissions(list(self.aggregator.add(calls)))
        else:
            self._append(list(join_calls(calls)))

    def _write_emissions(self, emissions: list[Emission]) -> None:
        if emissions:
            self._append(list(join_emissions(emissions)))
            self.run_updates.add(emissions)

    def _secs_until_checkpoint(self) -> float | None:
        """Return when partial aggregates and best values are to be written; None if unchanged."""
        if not (self._have_partials_changed() or self.run_updates.has_new_best):
            return None
        return max(0.0, self._partials_written_at + _CHECKPOINT_EVERY - time.monotonic())

    def _have_partials_changed(self) -> bool:
        return self.aggregator.changes != self._written_changes

    def _write_partials(self) -> None:
        """Write changed partial aggregates. They become partial rows if this process dies."""
        self.run_updates.write_best()
        self._partials_written_at = time.monotonic()
        if not self._have_partials_changed():
            return
        rows = list(join_emissions(self.aggregator.partial_results(), partial=True))
        self._written_changes = self.aggregator.changes
        rows = [with_rank(row, self.rank) for row in rows] if self.rank else rows
        self._append([PartialAggregates(time=time.time_ns(), rows=rows)])

    def _append(self, records: Sequence[Record]) -> None:
        """Write records, retrying on I/O errors. Drop records that the journal cannot hold."""
        if self.rank:
            records = [with_rank(record, self.rank) for record in records]
        while True:
            try:
                self._journal.append(records)
            except OSError as error:
                self.error = f"{type(error).__name__}: {error}"
                self._throttled_log.warn("the journal cannot be written; retrying: %s", self.error)
                self._queue.pause(_RETRY_SECS)
            # The thread must survive any invalid value that has passed validation.
            except Exception as error:
                self._drop_unwritable(records, error)
                return
            else:
                break
        if self.error:
            _log.warning("the journal can be written again")
            self.error = None
        self.journalled += sum(map(count_values, records))
        self.written_bytes = self._journal.length
        self._listener.wake()

    def _drop_unwritable(self, records: Sequence[Record], error: Exception) -> None:
        """Drop the record that cannot be written; write several one by one to find it."""
        if len(records) > 1:
            for record in records:
                self._append([record])
            return
        self._unwritable += sum(map(count_values, records))
        self._throttled_log.warn("dropped a record that cannot be written: %s", error)

    def _warn_unmerged(self) -> None:
        """Warn of reductions across ranks that are pending at close(), which never merges them."""
        names = self.aggregator.cross_rank_rules()
        if names and self._is_multi_rank:
            _log.warning(
                "the ranks were not synchronized after %s was logged, so the last result covers "
                "this rank only; call bus.end_epoch() or bus.sync() on every rank before "
                "bus.close()",
                ", ".join(map(repr, names)),
            )

    def _close(self, stop: commands.Stop) -> None:
        try:
            self._journal.close(stop.status, self._dropped_counts())
        except OSError as error:
            self.error = f"{type(error).__name__}: {error}"
        self.written_bytes = self._journal.length
        self._listener.end(stop.status)
        stop.done.set()

    def _abandon(self, error: BaseException) -> None:
        """Count what is not in the journal as dropped, end delivery, and release all commands."""
        self.error = f"internal error of the collector: {type(error).__name__}: {error}"
        self.is_broken = True
        with suppress(BaseException):  # the error may be that of a logging handler
            logging.getLogger("metricbus.collector").error(
                "internal error: from now on, all values of this run are dropped", exc_info=error
            )
        self._queue.abandon()
        calls = self._chunk
        while remaining := self._queue.take(_CHUNK):
            calls += remaining
        processed = self.journalled + self.aggregator.reduced + self.unwritable
        self._unwritable += max(0, self._queue.taken + self.aggregator.derived - processed)
        with suppress(BaseException):
            # No final counts: later calls are dropped as well.
            self._journal.append([Dropped(time=time.time_ns(), dropped=self._dropped_counts())])
            self._journal.close("failed")
        with suppress(BaseException):
            self._listener.end("failed")
        for call in (*calls, self._stop):
            if isinstance(call, Command):
                call.done.set()

    def _dropped_counts(self) -> DroppedCounts:
        return DroppedCounts(
            queue=self._queue.dropped, media=self.dropped_media(), unwritable=self.unwritable
        )

    def _write_dropped_counts(self) -> None:
        """Write the dropped counts if they have changed, at most every `_CHECKPOINT_EVERY`."""
        counts, now = self._dropped_counts(), time.monotonic()
        if counts != self._written_counts and now - self._counts_written_at >= _CHECKPOINT_EVERY:
            self._written_counts, self._counts_written_at = counts, now
            self._append([Dropped(time=time.time_ns(), dropped=counts)])

    def _warn_dropped(self) -> None:
        dropped = self._queue.dropped
        if dropped > self._reported_dropped and self._throttled_log.warn(
            "the queue is full; %s values dropped so far", f"{dropped:,}"
        ):
            self._reported_dropped = dropped

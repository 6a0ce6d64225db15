"""The session behind an open bus: run folder, queue, collector, media worker and delivery."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from metricbus._aggregate.cross_rank import MergedValue, Partials
from metricbus._aggregate.rules import Definition
from metricbus._bus.live_run import LiveRun
from metricbus._common.distributed import Rank
from metricbus._common.records import Number, RunUpdate, Status
from metricbus._delivery.manager import DeliveryManager
from metricbus._delivery.report import Report
from metricbus._ingest import commands
from metricbus._ingest.collector import Collector
from metricbus._ingest.media_worker import MediaWorker
from metricbus._ingest.queue import CallQueue, Command
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.run_env import export_run_dir, restore_run_dir
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus.run")

_SAVE_SECS = 2.0
_MEDIA_SHARE = 0.75  # of the time that close() has
_COLLECTOR_SECS = 1.0  # reserved for the collector, however long media take
_SILENT_SECS = 3.0  # close() waits this long before it logs what it is waiting for


class Session:
    """Everything between `log()` and the sinks, for one bus.

    On a rank that does not write, `folder` and `run` are None. Only the `owner` ends the run.
    `initial_rank` is the rank as it was known when the bus was opened.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        run: Run | None,
        queue: CallQueue,
        collector: Collector,
        media: MediaWorker,
        *,
        delivery: DeliveryManager,
        initial_rank: Rank,
        owner: bool,
    ) -> None:
        self.initial_rank = initial_rank
        self.folder = folder
        self.queue = queue
        self._is_owner = owner
        self._live_run: LiveRun | None = None
        if folder is not None and run is not None:
            self._live_run = LiveRun(folder, run, collector.segment, collector.rank, owner=owner)
        collector.run_updates.run_file = self._live_run
        self._delivery = delivery
        self._collector = collector
        self._media = media
        self._close_lock = threading.RLock()  # a signal handler may close while close() waits
        self._final_status: Status | None = None
        self._is_closed = False
        if owner and folder is not None:
            export_run_dir(folder.path)
        self._collector.dropped_media = lambda: media.dropped
        self._collector.start()
        self._delivery.start()

    @property
    def run(self) -> Run | None:
        """The run with all updates of this process; None on a rank that does not write."""
        return self._live_run.run if self._live_run else None

    @property
    def rank(self) -> int:
        """The rank that the records are marked with: 0 unless several ranks write."""
        return self._collector.rank

    def define(self, definition: Definition, *, default: bool) -> None:
        """Apply a definition to all values logged from now on.

        Raises `ConfigError` if it names a sink that the bus does not have.
        """
        if definition.display_only:  # the collector has no use for it, and would become slower
            return
        kinds = self._delivery.sink_kinds()
        for sink in definition.sinks or ():
            if kinds and sink not in kinds:
                raise ConfigError(
                    f"define({definition.pattern!r}): this bus has no sink {sink!r}; "
                    f"its sinks are {', '.join(kinds)}"
                )
        self._submit(commands.Define(definition, default=default))

    def update_run(self, update: RunUpdate, what: str) -> bool:
        """Apply an update to the run and write it to the journal and run.json.

        After `close()`, return False and drop it, with one warning that says `what` was updated;
        under `strict`, raise `ClosedError`.
        """
        if self.queue.is_closed:
            self.queue.drop_after_close(what)
            return False
        if self._live_run is not None:
            self._live_run.apply([update])
        self._submit(commands.UpdateRun(update))
        return True

    def begin_epoch(self, step: int, epoch: int) -> None:
        """Write an epoch's beginning to the journal."""
        self._submit(commands.BeginEpoch(step, epoch))

    def end_epoch(
        self, step: int, epoch: int, seconds: float | None, timeout: float
    ) -> dict[str, Number]:
        """Emit the epoch's reductions and return them, or nothing after `timeout` seconds."""
        command = commands.EndEpoch(step, epoch, seconds)
        if self._collector.submit_and_wait(command, timeout) or self._collector.is_broken:
            return command.results
        _log.warning(
            "The reductions of epoch %d are not ready, so end_epoch() cannot return them; they "
            "will be logged",
            epoch,
        )
        return {}

    def collect_partials(self, timeout: float) -> Partials:
        """Take the partial aggregates to merge across ranks; none if that takes too long."""
        command = commands.CollectPartials()
        if not self._collector.submit_and_wait(command, timeout):
            if command.claim():
                _log.warning(
                    "The journal cannot be written at the moment: this merge across ranks does "
                    "not include the values of this rank"
                )
            else:  # the collector is executing the command
                command.done.wait()
        return command.partials

    def restore_partials(self, partials: Partials) -> None:
        """Put back partial aggregates whose merge failed."""
        self._submit(commands.RestorePartials(partials))

    def publish_merged(
        self, merged: Sequence[MergedValue], epoch: int, *, ends_epoch: bool, is_writer: bool
    ) -> None:
        """Make merged values available to `newest()`, and log them if this rank `is_writer`."""
        self._collector.aggregator.newest |= {value.emitted_as: value.value for value in merged}
        self._submit(
            commands.PublishMerged(merged, epoch, ends_epoch=ends_epoch, is_writer=is_writer)
        )

    def submit_and_wait(self, command: Command, timeout: float) -> bool:
        """Execute a command after everything logged so far. Return whether that was in time."""
        deadline = time.monotonic() + timeout
        self._media.drain(max(timeout / 2, timeout - _COLLECTOR_SECS))
        return self._collector.submit_and_wait(command, max(0.0, deadline - time.monotonic()))

    def submit_after_media(self, command: Command, timeout: float) -> None:
        """Submit a command once the media logged so far are encoded, or after `timeout` seconds."""
        self._media.drain(timeout)
        self._submit(command)

    def _submit(self, command: Command) -> None:
        self.queue.put_command(command, request_flush=False)

    def newest(self, name: str) -> Number | None:
        """Return the newest reduced value under a name."""
        return self._collector.aggregator.newest.get(name)

    def reduced_names(self) -> list[str]:
        """Return the names for which `newest()` has a value."""
        return list(self._collector.aggregator.newest)

    def newest_from_device(self, name: str) -> Number | None:
        """Return the newest value under a name that has been copied from a device to the host."""
        return self._collector.device_fetcher.newest.get(name)

    def save(self) -> None:
        """Write all logged values and partial aggregates to the journal. For a signal handler."""
        self.submit_and_wait(commands.SavePartials(), _SAVE_SECS)

    def flush(self, timeout: float) -> Report:
        """Wait at most `timeout` seconds until all logged values have reached every sink."""
        deadline = time.monotonic() + timeout
        if self.submit_and_wait(commands.Flush(), timeout):
            target = {self._collector.segment: self._collector.written_bytes}
            self._delivery.flush(target, deadline)
        return self.stats()

    def close(self, status: Status, timeout: float) -> Report:
        """End the run in at most `timeout` seconds. Unfinished sinks continue in the background.

        A second call waits again for unfinished sinks. The status of the first call is kept.
        """
        deadline = time.monotonic() + timeout
        if self._close_lock.acquire(timeout=timeout):
            try:
                if not self._is_closed:
                    self._close_until(deadline, status)
            finally:
                self._close_lock.release()
        return self.stats()

    def _close_until(self, deadline: float, status: Status) -> None:
        """Write and deliver the remaining values, and log what is waited for and what is lost.

        The collector ends the delivery, after it has written the segment's last record.
        """
        is_first, self._final_status = self._final_status is None, self._final_status or status
        try:
            self._media.close(_MEDIA_SHARE * max(0.0, deadline - time.monotonic()))
            remaining = max(0.0, deadline - time.monotonic())
            is_written = self._collector.submit_and_wait(
                commands.Stop(self._final_status), remaining
            )
            silent_until = min(deadline, time.monotonic() + _SILENT_SECS)
            if not self._delivery.wait_until_closed(silent_until) and silent_until < deadline:
                sinks = ", ".join(self._delivery.unfinished())
                remaining = deadline - time.monotonic()
                _log.warning("Waiting up to %.0f s for the sinks: %s", remaining, sinks)
            self._is_closed = self._delivery.wait_until_closed(deadline) and is_written
        finally:  # also after Ctrl-C
            if is_first and self.folder is not None:
                restore_run_dir(self.folder.path)
            if is_first and self._is_owner and self._live_run is not None:
                self._live_run.end("failed" if self._collector.is_broken else self._final_status)
                self._collector.error = self._live_run.error or self._collector.error
        if is_first:
            self._warn_of_losses()

    def _warn_of_losses(self) -> None:
        if self._media.dropped:
            _log.warning(
                "%s media were dropped. The last error: %s",
                f"{self._media.dropped:,}",
                self._media.error,
            )
        for name, sink in self.stats().sinks.items():
            if sink.rejected or sink.pending:
                _log.warning(
                    "Sink %s: %s values rejected, %s not delivered (%s). They are kept in %s",
                    name,
                    f"{sink.rejected:,}",
                    f"{sink.pending:,}",
                    sink.error or "no response yet",
                    self.folder.journal if self.folder else "",
                )

    def stats(self) -> Report:
        """Return the current counts."""
        collector, queue, media = self._collector, self.queue, self._media
        encoding, dropped_media = media.waiting, media.dropped
        # The tallies are read before the collector's counts: whatever a sink has processed has been
        # counted as written by then.
        tallies = self._delivery.tallies()
        segment = collector.segment
        own = max([collector.journalled, *(t.processed_in(segment) for t in tallies.values())])
        others = max((t.processed_elsewhere(segment) for t in tallies.values()), default=0)
        # What reduces `unwritten` is read before what raises it: no value is counted twice.
        reduced, unwritable = collector.aggregator.reduced, collector.unwritable
        derived = collector.aggregator.derived
        taken, waiting = queue.counts()
        unwritten = max(0, taken + derived - reduced - own - unwritable)
        return Report(
            journalled=own,
            others=others,
            reduced=reduced,
            derived=derived,
            dropped=queue.dropped + queue.dropped_after_close + unwritable + dropped_media,
            waiting=unwritten + waiting + encoding,
            damaged=max((tally.damaged for tally in tallies.values()), default=0),
            error=collector.error or media.error,
            sinks={name: tally.counts(own + others) for name, tally in tallies.items()},
        )

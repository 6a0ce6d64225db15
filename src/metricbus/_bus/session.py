"""What works behind an open bus: the run's folder, the queue, the collector, the delivery."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from metricbus._aggregate.cross_rank import Merged, Parts
from metricbus._aggregate.rules import Definition
from metricbus._common.distributed import Rank
from metricbus._common.media_base import Encoder
from metricbus._common.records import Number, Status
from metricbus._delivery.manager import Delivery
from metricbus._delivery.report import Report
from metricbus._ingest.collector import Collector
from metricbus._ingest.commands import (
    BeginEpoch,
    CollectPartials,
    Define,
    EndEpoch,
    Flush,
    PublishMerged,
    RestorePartials,
    SavePartials,
    Stop,
)
from metricbus._ingest.queue import CallQueue, Control
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.run_env import announce, withdraw
from metricbus.errors import ConfigError, JournalError

_log = logging.getLogger("metricbus.run")

_SAVE_SECS = 2.0
_MEDIA_SHARE = 0.75  # of the time there is to close
_COLLECTORS_SHARE = 1.0  # seconds that are kept for it, however long media take
_PATIENCE = 3.0  # how long close() waits before it says for whom


class Media(Encoder, Protocol):
    """Who encodes media, as far as an engine is concerned."""

    @property
    def waiting(self) -> int:
        """Media that are not in the collector's hands yet."""
        ...

    @property
    def dropped(self) -> int:
        """Media that never will be."""
        ...

    @property
    def error(self) -> str | None:
        """Why the last of them was."""
        ...

    def drain(self, timeout: float) -> bool:
        """Waits until what has been put so far is encoded; whether it is."""
        ...

    def close(self, timeout: float) -> None:
        """Takes nothing more, and gives up what is not encoded in time."""


class Session:
    """Everything between the queue and the sinks, for one bus."""

    def __init__(
        self,
        place: tuple[RunFolder, Run] | None,
        queue: CallQueue,
        collector: Collector,
        media: Media,
        delivery: Delivery,
        *,
        known_as: Rank,
        owner: bool,
    ) -> None:
        """A rank that does not write has no `place`; only the `owner` ends the run.

        `known_as` is the rank as it was known when this began.
        """
        self.known_as = known_as
        self.folder = place[0] if place else None
        self.run = place[1] if place else None
        self.queue = queue
        self._owner = owner
        self._delivery = delivery
        self._collector = collector
        self._media = media
        self._closing = threading.RLock()  # a signal handler may close while close() waits
        self._ended: Status | None = None
        self._complete = False
        if owner and self.folder is not None:
            announce(self.folder.path)
        self._collector.dropped_media = lambda: media.dropped
        self._collector.start()
        self._delivery.start()

    @property
    def rank(self) -> int:
        """The rank whose values these are, where several write; otherwise 0."""
        return self._collector.rank

    def define(self, definition: Definition, *, default: bool) -> None:
        """Has a definition hold for everything that is logged from now on."""
        if definition.display_only:  # which is nothing to the collector, and costs it nothing
            return
        known = self._delivery.names()
        for sink in definition.sinks or ():
            if known and sink not in known:
                raise ConfigError(
                    f"define({definition.pattern!r}): this bus has no sink {sink!r}; "
                    f"it has: {', '.join(known)}"
                )
        self.queue.put_control(Define(definition, default=default), request_flush=False)

    def begin_epoch(self, step: int, epoch: int) -> None:
        """Tells the sinks that show it that an epoch begins."""
        self.queue.put_control(BeginEpoch(step, epoch), request_flush=False)

    def end_epoch(
        self, step: int, epoch: int, seconds: float | None, timeout: float
    ) -> dict[str, Number]:
        """Emits the epoch's reductions; returns them, or none where that takes too long."""
        control = EndEpoch(step, epoch, seconds)
        if self._collector.submit_and_wait(control, timeout):
            return control.results
        _log.warning("the reductions of epoch %d are not ready; they will be logged", epoch)
        return {}

    def collect_partials(self, timeout: float) -> Parts:
        """What waits for the ranks to meet; nothing, if that cannot be had in time."""
        control = CollectPartials()
        if not self._collector.submit_and_wait(control, timeout):
            if control.claim():
                _log.warning("the journal is held up: this rank brings nothing to the others")
            else:  # it is being obeyed
                control.done.wait()
        return control.parts

    def restore_partials(self, parts: Parts) -> None:
        """The ranks did not meet."""
        self.queue.put_control(RestorePartials(parts), request_flush=False)

    def publish_merged(
        self, results: Sequence[Merged], epoch: int, *, ended: bool, here: bool
    ) -> None:
        """The ranks met: this is what they gave together; it is written `here`, or elsewhere."""
        self._collector.reducing.newest |= {one.emitted_as: one.value for one in results}
        self.queue.put_control(
            PublishMerged(results, epoch, ended=ended, here=here), request_flush=False
        )

    def submit_and_wait(self, control: Control, timeout: float) -> bool:
        """Has the collector obey after all that was logged, and waits; whether it did in time."""
        deadline = time.monotonic() + timeout
        self._media.drain(max(timeout / 2, timeout - _COLLECTORS_SHARE))
        return self._collector.submit_and_wait(control, max(0.0, deadline - time.monotonic()))

    def submit(self, control: Control, timeout: float) -> None:
        """Has the collector obey in its turn, after the media that were logged, if that is soon."""
        self._media.drain(timeout)
        self.queue.put_control(control, request_flush=False)

    def newest(self, name: str) -> Number | None:
        """The newest value that a reduction gave under this name."""
        return self._collector.reducing.newest.get(name)

    def reduced_names(self) -> list[str]:
        """The names that there is a `newest` value for."""
        return list(self._collector.reducing.newest)

    def arrived(self, name: str) -> Number | None:
        """The newest value under this name that has come over from a device."""
        return self._collector.arrivals.newest.get(name)

    def save(self) -> None:
        """Brings into the journal what has been logged and what is open; for a signal handler."""
        self.submit_and_wait(SavePartials(), _SAVE_SECS)

    def flush(self, timeout: float) -> Report:
        """Waits, at most `timeout` seconds, until all that was logged has reached every sink."""
        deadline = time.monotonic() + timeout
        if self.submit_and_wait(Flush(), timeout):
            target = {self._collector.segment: self._collector.written}
            self._delivery.flush(target, deadline)
        return self.stats()

    def close(self, status: Status, timeout: float) -> Report:
        """Ends the run in at most `timeout` seconds; what is not done then goes on by itself.

        Called again, it waits again for what is left; the status is that of the first time.
        """
        deadline = time.monotonic() + timeout
        if self._closing.acquire(timeout=timeout):
            try:
                if not self._complete:
                    self._finish(status, deadline)
            finally:
                self._closing.release()
        return self.stats()

    def _finish(self, status: Status, deadline: float) -> None:
        """Journals and delivers the rest; says what it waits for, and what it gives up on.

        The collector tells the consumers that the run has ended, when it has written its last line.
        """
        first, self._ended = self._ended is None, self._ended or status
        try:
            self._media.close(_MEDIA_SHARE * max(0.0, deadline - time.monotonic()))
            left = max(0.0, deadline - time.monotonic())
            is_written = self._collector.submit_and_wait(Stop(self._ended), left)
            patience = min(deadline, time.monotonic() + _PATIENCE)
            if not self._delivery.wait_until_closed(patience) and patience < deadline:
                waiting = ", ".join(self._delivery.unfinished())
                left = deadline - time.monotonic()
                _log.warning("waiting up to %.0f s for: %s", left, waiting)
            self._complete = self._delivery.wait_until_closed(deadline) and is_written
        finally:  # also when the user has lost patience and pressed Ctrl-C
            if first and self.folder is not None:
                withdraw(self.folder.path)
            if first and self._owner:
                self._end_run(self._ended)
        if first:
            self._tell_what_is_left()

    def _tell_what_is_left(self) -> None:
        if self._media.dropped:
            _log.warning(
                "%s media were dropped, the last of them: %s",
                f"{self._media.dropped:,}",
                self._media.error,
            )
        for name, sink in self.stats().sinks.items():
            if sink.rejected or sink.pending:
                _log.warning(
                    "sink %s: %s values rejected, %s not delivered (%s); they are in %s",
                    name,
                    f"{sink.rejected:,}",
                    f"{sink.pending:,}",
                    sink.error or "no answer yet",
                    self.folder.journal if self.folder else "",
                )

    def stats(self) -> Report:
        """The counts as they are now."""
        collector, queue, media = self._collector, self.queue, self._media
        encoding, lost = media.waiting, media.dropped
        tallies = self._delivery.tallies()  # first: what they have seen, the journal has by then
        reduced, derived = collector.reducing.reduced, collector.reducing.derived
        taken = collector.taken
        own = max([collector.journalled, *(t.seen_of(collector.segment) for t in tallies.values())])
        others = max((t.seen_elsewhere(collector.segment) for t in tallies.values()), default=0)
        return Report(
            journalled=own,
            others=others,
            reduced=reduced,
            derived=derived,
            dropped=queue.dropped + queue.dropped_late + collector.unwritable + lost,
            waiting=max(0, taken + derived - reduced - own - collector.unwritable)
            + queue.waiting()
            + encoding,
            damaged=max((tally.damaged for tally in tallies.values()), default=0),
            error=collector.error or media.error,
            sinks={name: tally.counts(own + others) for name, tally in tallies.items()},
        )

    def _end_run(self, status: Status) -> None:
        if self.folder is None or self.run is None:
            return
        ended = msgspec.structs.replace(self.run, status=status, ended=time.time_ns())
        try:
            if self.folder.load().attempt == self.run.attempt:
                self.folder.save(ended)
        except (OSError, JournalError) as error:
            self._collector.error = f"run.json cannot be written: {error}"

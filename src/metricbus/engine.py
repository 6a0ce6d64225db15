"""What works behind an open bus: the run's folder, the queue, the collector, the delivery.

A process that a run started finds the run by `METRICBUS_RUN_DIR` and joins it: it writes a segment
of its own into the same folder, which the owner's delivery brings along, and has no sinks itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from metricbus.attempts import find_run, go_on
from metricbus.collector import Append, Collector, Define, EpochBegins, EpochEnds, Flush, Save, Stop
from metricbus.config import Settings, variable_of
from metricbus.definitions import Definition
from metricbus.delivery import Delivery
from metricbus.errors import ConfigError, JournalError
from metricbus.journal import SegmentWriter
from metricbus.media_worker import MediaBounds, MediaWorker
from metricbus.queue import Bounds, CallQueue, Control
from metricbus.records import Number, Status
from metricbus.report import Report
from metricbus.run import Run, RunFolder, create_run, plain_config
from metricbus.sinks import Sink
from metricbus.specs import SinkSpec, specs_of

_log = logging.getLogger("metricbus.run")

_RUN_DIR = variable_of("run_dir")
_SAVE_SECS = 2.0
_MEDIA_SHARE = 0.75  # of the time there is to close
_COLLECTORS_SHARE = 1.0  # seconds that are kept for it, however long media take
_PATIENCE = 3.0  # how long close() waits before it says for whom
_exported: tuple[int, str] | None = None  # (pid, folder) of the run that this process announced
_inherited: str | None = None  # what the variable said before


class About(NamedTuple):
    """What a run is told about itself when it is made, by arguments alone."""

    id: str | None
    name: str | None
    config: Mapping[str, Any]
    tags: Sequence[str]
    group: str | None
    notes: str | None


class Engine:
    """Everything between the queue and the sinks, for one bus."""

    def __init__(
        self,
        folder: RunFolder,
        run: Run,
        settings: Settings,
        specs: Sequence[SinkSpec],
        owner: bool,
    ) -> None:
        self.folder = folder
        self.run = run
        self.queue = CallQueue(
            Bounds(
                calls=settings.queue_size,
                nbytes=settings.queue_bytes,
                overflow=settings.overflow,
                block_secs=settings.block_secs,
                batch_size=settings.batch_size,
                flush_bytes=settings.flush_bytes,
            ),
            strict=settings.strict,
        )
        self._owner = owner
        self._delivery = Delivery(
            folder, specs, run.attempt, settings.delivery, settings.linger_secs
        )
        try:
            journal = SegmentWriter(
                folder.journal, run.id, attempt=run.attempt, fsync=settings.fsync
            )
        except OSError as error:
            raise ConfigError(
                f"cannot begin a journal in {folder.journal}: {error.strerror}"
            ) from error
        self._collector = Collector(self.queue, journal, settings.flush_secs, self._delivery)
        self._media = MediaWorker(
            folder.path,
            journal.segment,
            MediaBounds(settings.queue_bytes, settings.overflow, settings.block_secs),
            lambda record: self.queue.put_control(Append(record), hurry=False),
        )
        self.queue.media = self._media
        self._closing = threading.RLock()  # a signal handler may close while close() waits
        self._ended: Status | None = None
        self._complete = False
        if owner:
            _announce(folder.path)
        self._collector.start()
        self._delivery.start()

    def define(self, definition: Definition, *, default: bool) -> None:
        """Has a definition hold for everything that is logged from now on."""
        known = self._delivery.names()
        for sink in definition.sinks or ():
            if known and sink not in known:
                raise ConfigError(
                    f"define({definition.pattern!r}): this bus has no sink {sink!r}; "
                    f"it has: {', '.join(known)}"
                )
        self.queue.put_control(Define(definition, default=default), hurry=False)

    def begin_epoch(self, step: int, epoch: int) -> None:
        """Tells the sinks that show it that an epoch begins."""
        self.queue.put_control(EpochBegins(step, epoch), hurry=False)

    def end_epoch(
        self, step: int, epoch: int, seconds: float | None, timeout: float
    ) -> dict[str, Number]:
        """Emits the epoch's reductions; returns them, or none where that takes too long."""
        control = EpochEnds(step, epoch, seconds)
        if self._collector.obey(control, timeout):
            return control.results
        _log.warning("the reductions of epoch %d are not ready; they will be logged", epoch)
        return {}

    def obey(self, control: Control, timeout: float) -> bool:
        """Has the collector obey after all that was logged, and waits; whether it did in time."""
        deadline = time.monotonic() + timeout
        self._media.drain(max(timeout / 2, timeout - _COLLECTORS_SHARE))
        return self._collector.obey(control, max(0.0, deadline - time.monotonic()))

    def order(self, control: Control, timeout: float) -> None:
        """Has the collector obey in its turn, after the media that were logged, if that is soon."""
        self._media.drain(timeout)
        self.queue.put_control(control, hurry=False)

    def newest(self, name: str) -> Number | None:
        """The newest value that a reduction gave under this name."""
        return self._collector.reducing.newest.get(name)

    def save(self) -> None:
        """Brings into the journal what has been logged and what is open; for a signal handler."""
        self.obey(Save(), _SAVE_SECS)

    def flush(self, timeout: float) -> Report:
        """Waits, at most `timeout` seconds, until all that was logged has reached every sink."""
        deadline = time.monotonic() + timeout
        if self.obey(Flush(), timeout):
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
            self._collector.obey(Stop(self._ended), max(0.0, deadline - time.monotonic()))
            patience = min(deadline, time.monotonic() + _PATIENCE)
            if not self._delivery.wait_until_closed(patience) and patience < deadline:
                waiting = ", ".join(self._delivery.unfinished())
                left = deadline - time.monotonic()
                _log.warning("waiting up to %.0f s for: %s", left, waiting)
            self._complete = self._delivery.wait_until_closed(deadline)
        finally:  # also when the user has lost patience and pressed Ctrl-C
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
                    self.folder.journal,
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
        _withdraw(self.folder.path)
        ended = msgspec.structs.replace(self.run, status=status, ended=time.time_ns())
        try:
            if self.folder.load().attempt == self.run.attempt:
                self.folder.save(ended)
        except (OSError, JournalError) as error:
            self._collector.error = f"run.json cannot be written: {error}"


def open_engine(
    settings: Settings, about: About, sinks: str | Sequence[str | Sink] | None
) -> Engine:
    """A new run with its sinks; or, in a process that a run started, a further segment of that run.

    Raises `ConfigError` for whatever cannot work.
    """
    joined = _run_to_join(settings, about)
    if joined is not None:
        return Engine(*joined, settings, [], owner=False)
    specs = specs_of(settings.sinks if sinks is None else sinks)
    folder, run = _find_or_create(
        settings,
        about.id if about.id is not None else settings.run_id,
        config=about.config,
        project=settings.project,
        tags=list(about.tags),
        group=about.group,
        notes=about.notes,
        sinks=[spec.canonical for spec in specs],
    )
    return Engine(folder, run, settings, specs, owner=True)


def _find_or_create(settings: Settings, id: str | None, **about: Any) -> tuple[RunFolder, Run]:
    root = Path(settings.dir).expanduser()
    if settings.resume != "never":
        found = find_run(root, id, settings.run)
        if found is not None:
            return go_on(found, **about)
        if settings.resume == "must":
            which = f"the id {id!r}" if id is not None else f"the name {settings.run!r}"
            raise ConfigError(f"there is no run with {which} in {root} to go on with")
    return create_run(root, id=id, name=settings.run, **about)


def join_engine(folder: RunFolder, settings: Settings) -> Engine:
    """A further segment of a run that is on its way; `MetricBusError` if it has ended."""
    run = folder.load()
    if run.status != "running":
        raise ConfigError(f"the run {run.id} has ended; make a new MetricBus()")
    return Engine(folder, run, settings, [], owner=False)


def _run_to_join(settings: Settings, about: About) -> tuple[RunFolder, Run] | None:
    """The run that this process was started by; none if it announced that itself or wants another.

    Another id or name, given as an argument, is another run; another config alone is not.
    """
    if settings.run_dir is None or _exported == (os.getpid(), settings.run_dir):
        return None
    folder = RunFolder(Path(settings.run_dir))
    run = folder.load()
    if about.id not in (None, run.id) or about.name not in (None, run.name):
        return None
    if run.status != "running":
        _log.warning("the run %s that started this process has ended: this is a new one", run.id)
        return None
    if about.config and plain_config(about.config) != run.config:
        _log.warning(
            "joined the run %s that started this process; its config stays as it is there. "
            "For a run of its own give it another name: MetricBus(run=...)",
            run.id,
        )
    return folder, run


def _announce(folder: Path) -> None:
    """Tells the processes that this one starts which run is theirs."""
    global _exported, _inherited
    if _exported is None or _exported[0] != os.getpid():
        _inherited = os.environ.get(_RUN_DIR)
        _exported = (os.getpid(), str(folder))
        os.environ[_RUN_DIR] = str(folder)


def _withdraw(folder: Path) -> None:
    global _exported
    if _exported == (os.getpid(), str(folder)):
        _exported = None
        if _inherited is None:
            os.environ.pop(_RUN_DIR, None)
        else:
            os.environ[_RUN_DIR] = _inherited

"""A consumer: reads the journal at its own pace and feeds one sink.

It needs nothing but the run's folder and a sink. The journal is its only source, so a slow, hanging
or failing backend costs the others nothing and costs no memory: it is behind, and catches up.

A pass is: read a batch, filter, `write`, `flush`, save the progress. When `write` fails

* for now (`Unavailable`, `OSError`), the consumer goes back to the saved progress and tries again
  after a while: 0.5 s, doubled each time up to 30 s, with jitter, or as long as the backend said;
* for good (anything else), the batch comes again in halves, until the records that fail alone are
  found. Those are counted as rejected; all others are delivered.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any, NamedTuple

from metricbus.bell import Bell
from metricbus.errors import Unavailable
from metricbus.filters import RowFilter
from metricbus.journal import JournalReader, Position, Row
from metricbus.offsets import load_progress, save_progress
from metricbus.records import Scalars, Status
from metricbus.report import SinkCounts
from metricbus.run import RunFolder
from metricbus.sinks import CommonOptions, Sink, make_sink
from metricbus.urls import SinkURL, redact

_log = logging.getLogger("metricbus.delivery")

_COMPLAIN_EVERY = 60.0
_LOOK_EVERY = 1.0  # other processes write segments too, and ring no bell here
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0


class SinkSpec(NamedTuple):
    """A sink to be fed: its name for people, its key for files, and how it wants its records.

    `kind` is the first part of its URL, or the class of a user's own object: what `sinks=` of a
    definition names.
    """

    name: str
    kind: str
    key: str
    canonical: str
    sink: Sink
    options: CommonOptions


def spec_of(sink: SinkURL | Sink) -> SinkSpec:
    """The spec for a URL, or for a user's own sink object."""
    if isinstance(sink, SinkURL):
        made, options = make_sink(sink)
        return SinkSpec(redact(sink.text), sink.name, sink.key, sink.canonical, made, options)
    name = type(sink).__name__
    return SinkSpec(name, name, f"object-{name}", f"object:{name}", sink, CommonOptions())


class _Split(Exception):  # noqa: N818 - it says what to do, and is caught right here
    """The batch was refused for good, and it has parts that can be tried by themselves."""


class Consumer:
    """Feeds one sink; `run` is the body of its thread."""

    def __init__(self, folder: RunFolder, spec: SinkSpec) -> None:
        self.spec = spec
        self.finished = False
        self.changed = threading.Condition()  # told at each step that somebody may wait for
        self._folder = folder
        self._sink = spec.sink
        self._offsets = folder.offsets / f"{spec.key}.json"
        self._progress = load_progress(self._offsets, spec.canonical)
        self._filter = RowFilter(spec.options, self._progress.seen)
        self._reader = JournalReader(folder.journal, self._progress.positions)
        self._batch_limit = spec.options.batch_size
        self._bell = Bell()
        self._in_a_hurry = False
        self._ending: Status | None = None
        self._opened = False
        self._failures = 0
        self._complained = -_COMPLAIN_EVERY
        self._error: str | None = None

    # What other threads call.

    def wake(self) -> None:
        """The journal has grown."""
        self._bell.ring()

    def hurry(self) -> None:
        """Deliver what is there now, without regard to the pace."""
        self._in_a_hurry = True
        self._bell.ring()

    def end(self, status: Status) -> None:
        """Deliver what is there, close the sink with this status, and finish."""
        self._ending = status
        self.hurry()

    def has_reached(self, target: dict[str, int]) -> bool:
        """Whether everything before these bytes of the segments has been dealt with."""
        positions = self._progress.positions
        return all(
            positions.get(segment, Position()).offset >= offset
            for segment, offset in target.items()
        )

    def counts(self, journalled: int) -> SinkCounts:
        """The counts, given how many values the journal holds."""
        done = self._progress
        delivered, rejected, filtered = done.delivered, done.rejected, done.filtered
        return SinkCounts(
            delivered=delivered,
            rejected=rejected,
            filtered=filtered,
            pending=max(0, journalled - delivered - rejected - filtered),
            error=self._error,
            where=self._sink.where if self._opened else "",
            command=self._sink.command if self._opened else "",
        )

    # The consumer's own thread.

    def run(self) -> None:
        """Works until `end`, or for as long as the process lives."""
        try:
            while not self._turn():
                pass
            self._close()
        except BaseException as error:  # a backend may even call sys.exit()
            self._error = redact(f"{type(error).__name__}: {error}")
            _log.error("sink %s: its consumer stopped: %s", self.spec.name, self._error)
        finally:
            self.finished = True
            self._tell()

    def _turn(self) -> bool:
        """One pass and the rest after it; whether everything is done."""
        started = time.monotonic()
        self._in_a_hurry = False  # one that comes from here on is not yet served
        ending = self._ending is not None  # what was journalled before the end is seen by this pass
        try:
            if not self._opened:
                run = self._folder.load()
                self._sink.open(run, self._folder.path, self._progress.state)
                self._opened = True
            caught_up = not self._pass()
            if caught_up and not ending:
                self._rest_until(started + self.spec.options.flush_secs)
                if not self._in_a_hurry and self._reader.unread_bytes() == 0:
                    self._bell.wait(_LOOK_EVERY)
        except Exception as error:
            self._rest_after(error)
            return False
        return caught_up and ending

    def _pass(self) -> bool:
        """Delivers one batch; whether there was one. Nothing counts until it is all done."""
        seen = dict(self._filter.seen)
        try:
            rows = list(self._reader.read(self._batch_limit))
            if not rows:
                return False
            records, filtered = self._wanted(rows)
            delivered, rejected = self._write(records, can_split=len(rows) > 1)
            state = dict(self._sink.flush())
        except _Split:
            self._go_back(seen)
            self._batch_limit = max(1, len(rows) // 2)
            return True
        except Exception:
            self._go_back(seen)
            raise
        self._commit(state, delivered, rejected, filtered)
        return True

    def _write(self, records: list[Any], can_split: bool) -> tuple[int, int]:
        """Writes a batch; how many values were delivered and rejected."""
        values = sum(len(record.values) for record in records if isinstance(record, Scalars))
        try:
            if records:
                self._sink.write(records)
        except (Unavailable, OSError):
            raise
        except Exception as error:
            if can_split:
                raise _Split from error
            self._complain(f"rejected {values} values at step {records[0].step}", error)
            return 0, values
        self._batch_limit = min(self._batch_limit * 2, self.spec.options.batch_size)
        self._recover()
        return values, 0

    def _wanted(self, rows: list[Row]) -> tuple[list[Any], int]:
        """The records for the sink, and how many values were filtered out."""
        records: list[Any] = []
        filtered = 0
        for row in rows:
            record = row.record
            if isinstance(record, Scalars):
                kept = self._filter.apply(record) if self._is_for_us(record) else None
                filtered += len(record.values) - (len(kept.values) if kept else 0)
                if kept:
                    records.append(kept)
            elif isinstance(record, self._sink.kinds):
                records.append(record)
        return records, filtered

    def _is_for_us(self, row: Scalars) -> bool:
        return not row.sinks or self.spec.kind in row.sinks

    def _go_back(self, seen: dict[str, int]) -> None:
        self._reader.positions = dict(self._progress.positions)
        self._filter.seen = seen

    def _commit(self, state: dict[str, Any], delivered: int, rejected: int, filtered: int) -> None:
        progress = self._progress
        progress.state = state
        progress.seen = self._filter.seen
        progress.delivered += delivered
        progress.rejected += rejected
        progress.filtered += filtered
        progress.positions = dict(self._reader.positions)
        try:
            save_progress(self._offsets, progress)
        except OSError as error:  # after a crash the sink's own state finds what came twice
            self._complain("cannot save its progress", error)
        self._tell()

    def _close(self) -> None:
        try:
            self._sink.close(self._ending or "finished")
        except Exception as error:
            self._complain("failed to close", error)

    def _rest_until(self, due: float) -> None:
        """Waits, but for a hurry."""
        while not self._in_a_hurry and (left := due - time.monotonic()) > 0:
            self._bell.wait(left)

    def _rest_after(self, error: Exception) -> None:
        """Waits before the next attempt; once the run has ended, never for long."""
        self._failures += 1
        secs = min(_FIRST_RETRY * 2 ** (self._failures - 1), _LAST_RETRY)
        secs *= random.uniform(0.5, 1.0)
        if isinstance(error, Unavailable) and error.retry_after is not None:
            secs = max(error.retry_after, 0.0)
        if self._ending is not None:
            secs = min(secs, _FIRST_RETRY)
        self._complain("will try again", error)
        self._rest_until(time.monotonic() + secs)

    def _complain(self, what: str, error: Exception) -> None:
        """Remembers the failure, and warns of it unless that was done a short while ago."""
        self._error = redact(f"{type(error).__name__}: {error}")
        if time.monotonic() - self._complained >= _COMPLAIN_EVERY:
            self._complained = time.monotonic()
            _log.warning("sink %s: %s: %s", self.spec.name, what, self._error)
        self._tell()

    def _recover(self) -> None:
        if self._failures:
            _log.warning("sink %s works again", self.spec.name)
            self._failures = 0
            self._error = None
            self._complained = -_COMPLAIN_EVERY

    def _tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

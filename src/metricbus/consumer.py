"""A consumer: reads the journal at its own pace and feeds one sink.

It needs nothing but the run's folder and a sink. The journal is its only source, so a slow, hanging
or failing backend costs the others nothing and costs no memory: it is behind, and catches up.

A pass is: read a batch, filter, `write`, `flush`, save the progress. When `write` fails

* for now (`Unavailable`, `OSError`), the consumer goes back to before the batch and tries again
  after a while: 0.5 s, doubled each time up to 30 s, with jitter, or as long as the backend said;
* for now, and taking with it what was not settled (`Lost`), it goes back to what was;
* for good (anything else), the batch comes again in halves, until the records that fail alone are
  found. Those are counted as rejected; all others are delivered.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import msgspec

from metricbus.bell import Bell
from metricbus.complaints import Complaints
from metricbus.errors import Lost, Unavailable
from metricbus.filters import RowFilter
from metricbus.journal import Position, Row
from metricbus.offsets import Ledger
from metricbus.records import Scalars, Status
from metricbus.report import Tally
from metricbus.run import RunFolder
from metricbus.specs import SinkSpec
from metricbus.urls import redact

_log = logging.getLogger("metricbus.delivery")

_LOOK_EVERY = 1.0  # other processes write segments too, and ring no bell here
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0


class _Split(Exception):  # noqa: N818 - it says what to do, and is caught right here
    """The batch was refused for good, and it has parts that can be tried by themselves."""


class _Outcome(NamedTuple):
    """What became of a batch's values; `segments` has them all, by where they came from.

    `damaged` is how many of its lines could not be read.
    """

    delivered: int
    rejected: int
    filtered: int
    segments: dict[str, int]
    damaged: int


class Consumer:
    """Feeds one sink; `run` is the body of its thread."""

    def __init__(self, folder: RunFolder, spec: SinkSpec) -> None:
        self.spec = spec
        self.finished = False
        self.changed = threading.Condition()  # told at each step that somebody may wait for
        self._folder = folder
        self._sink = spec.sink
        offsets = folder.offsets / f"{spec.key}.json"
        self._ledger = Ledger(offsets, spec.canonical, ordered=spec.sink.ordered)
        self._given = 0  # records that the sink was given since it was opened
        self._go_back()
        self._batch_limit = spec.options.batch_size
        self._bell = Bell()
        self._random = random.Random()  # our own: the global one belongs to the training
        self._in_a_hurry = False
        self._ending: Status | None = None
        self._opened = False
        self._written: _Outcome | None = None  # a batch that is written and not yet flushed
        self._where = self._command = ""
        self._failures = 0
        self._complaints = Complaints(_log)
        self._error: str | None = None
        self._tell()

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
        positions = self._tally.positions  # published together with the counts
        return all(
            positions.get(segment, Position()).offset >= offset
            for segment, offset in target.items()
        )

    def tally(self) -> Tally:
        """What has been dealt with so far, at one moment."""
        return self._tally

    # The consumer's own thread.

    def run(self) -> None:
        """Works until `end`, or for as long as the process lives."""
        try:
            while not self._turn():
                pass
            self._close()
        except BaseException as error:  # a backend may even call sys.exit()
            self._error = _in_words(error)
            _log.error("sink %s: its consumer stopped: %s", self.spec.name, self._error)
        finally:
            self._tell()  # the last counts first, then that they are the last
            self.finished = True
            self._tell()

    def _turn(self) -> bool:
        """One pass and the rest after it; whether everything is done."""
        started = time.monotonic()
        self._in_a_hurry = False  # one that comes from here on is not yet served
        ending = self._ending is not None  # what was journalled before the end is seen by this pass
        try:
            if not self._opened:
                self._open()
            caught_up = not self._pass()
            if caught_up and not ending:
                self._settle()
                self._rest_until(started + self.spec.options.flush_secs)
                if not self._in_a_hurry and self._reader.unread_bytes() == 0:
                    self._bell.wait(_LOOK_EVERY)
        except Exception as error:
            if isinstance(error, Lost):
                self._forget_unsettled()
            self._rest_after(error)
            return False
        return caught_up and ending

    def _open(self) -> None:
        self._sink.open(self._folder.load(), self._folder.path, self._ledger.done.state)
        self._opened = True
        self._given = 0
        self._look_where()

    def _forget_unsettled(self) -> None:
        self._opened = False
        self._written = None
        self._ledger.fall_back()
        self._go_back()
        self._tell()

    def _look_where(self) -> None:
        try:
            self._where, self._command = self._sink.where, self._sink.command
        except Exception as error:
            self._complain("cannot tell where it writes to", error)

    def _pass(self) -> bool:
        """Delivers one batch; whether there was one. Nothing counts until it is all done."""
        if self._written is None:
            try:
                rows = list(self._reader.read(self._batch_limit))
                if not rows:
                    return False
                self._ledger.intend(rows, self._reader.ahead)
                self._written = self._write(rows)
            except _Split:
                self._go_back()
                self._batch_limit = max(1, len(rows) // 2)
                return True
            except BaseException:
                self._go_back()
                raise
        state = dict(self._sink.flush() or {})  # if this fails, it alone is tried again
        self._commit(state, self._written)
        self._written = None
        return True

    def _write(self, rows: list[Row]) -> _Outcome:
        """Writes a batch; what became of its values, in all and by segment."""
        records, filtered, segments = self._wanted(rows)
        damaged = sum(row.record is None for row in rows)
        values = sum(segments.values()) - filtered
        try:
            if records:
                self._sink.write(records)
                self._given += len(records)
        except (Unavailable, OSError):
            raise
        except Exception as error:
            if len(rows) > 1:
                raise _Split from error
            self._complain(f"rejected {values} values at step {records[0].step}", error)
            return _Outcome(0, values, filtered, segments, damaged)
        self._batch_limit = min(self._batch_limit * 2, self.spec.options.batch_size)
        return _Outcome(values, 0, filtered, segments, damaged)

    def _wanted(self, rows: list[Row]) -> tuple[list[Any], int, dict[str, int]]:
        """The records for the sink, how many values were filtered out, and all by segment."""
        records: list[Any] = []
        filtered = 0
        segments: dict[str, int] = {}
        for row in rows:
            record = row.record
            if isinstance(record, Scalars):
                values = len(record.values)
                segments[row.segment] = segments.get(row.segment, 0) + values
                kept = self._filter.apply(record) if self._is_for_us(record) else None
                filtered += values - (len(kept.values) if kept else 0)
                if kept:
                    records.append(kept)
            elif isinstance(record, self._sink.kinds):
                records.append(record)
        return records, filtered, segments

    def _is_for_us(self, row: Scalars) -> bool:
        return not row.sinks or self.spec.kind in row.sinks

    def _go_back(self) -> None:
        """To what is done."""
        self._reader = self._ledger.reader(self._folder.journal)
        self._filter = RowFilter(self.spec.options, dict(self._ledger.done.seen))

    def _commit(self, state: dict[str, Any], outcome: _Outcome) -> None:
        done = self._ledger.done
        progress = msgspec.structs.replace(
            done,
            state=state,
            seen=dict(self._filter.seen),
            delivered=done.delivered + outcome.delivered,
            rejected=done.rejected + outcome.rejected,
            filtered=done.filtered + outcome.filtered,
            values=dict(Counter(done.values) + Counter(outcome.segments)),
            damaged=done.damaged + outcome.damaged,
            positions=dict(self._reader.positions),
            ahead=[],
        )
        self._ledger.add(progress, self._given)
        if outcome.delivered:
            self._recover()
        self._settle()
        self._tell()

    def _settle(self) -> None:
        """Saves as much of the progress as would outlive a crash."""
        if self._ledger.is_settled():
            return
        try:
            self._ledger.settle(self._sink.settled())
        except OSError as error:  # after a crash the sink's own state finds what came twice
            self._complain("cannot save its progress", error)

    def _close(self) -> None:
        try:
            self._sink.close(self._ending or "finished")
            self._ledger.settle(None)
        except Exception as error:
            self._complain("failed to close", error)

    def _rest_until(self, due: float) -> None:
        """Waits, but for a hurry."""
        while not self._in_a_hurry and (left := due - time.monotonic()) > 0:
            self._bell.wait(left)

    def _rest_after(self, error: Exception) -> None:
        """Waits before the next attempt; once the run has ended, never for long."""
        self._failures += 1
        secs = min(_FIRST_RETRY * 2.0 ** min(self._failures - 1, 20), _LAST_RETRY)
        secs *= self._random.uniform(0.5, 1.0)
        if isinstance(error, Unavailable) and error.retry_after is not None:
            secs = max(error.retry_after, 0.0)
        if self._ending is not None:
            secs = min(secs, _FIRST_RETRY)
        self._complain("will try again", error)
        self._rest_until(time.monotonic() + secs)

    def _complain(self, what: str, error: Exception) -> None:
        """Remembers the failure, and warns of it unless that was done a short while ago."""
        self._error = _in_words(error)
        self._complaints.warn("sink %s: %s: %s", self.spec.name, what, self._error)
        self._tell()

    def _recover(self) -> None:
        if self._failures:
            _log.warning("sink %s works again", self.spec.name)
            self._failures = 0
            self._error = None
            self._complaints.forget()

    def _tell(self) -> None:
        done = self._ledger.done
        self._tally = Tally(
            delivered=done.delivered,
            rejected=done.rejected,
            filtered=done.filtered,
            values=done.values,
            positions=done.positions,
            damaged=done.damaged,
            error=self._error,
            where=self._where,
            command=self._command,
        )
        with self.changed:
            self.changed.notify_all()


def _in_words(error: BaseException) -> str:
    """The error as text without secrets, even if it cannot tell its own."""
    try:
        return redact(f"{type(error).__name__}: {error}")
    except Exception:
        return type(error).__name__

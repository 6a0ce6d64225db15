"""The collector: the one thread that turns queued calls into records and writes them down.

A pass takes calls from the queue in chunks, joins them into rows, and appends each chunk to the
journal in one write. Between chunks it lets go of the interpreter, so that the training loop never
waits for it longer than a chunk takes.

When the journal cannot be written (a full disk), the rows of that chunk are kept and tried again;
the queue is left alone meanwhile, and its policy decides what becomes of new calls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

from metricbus.journal import SegmentWriter
from metricbus.queue import Call, CallQueue, Control
from metricbus.records import Scalars, Status

_log = logging.getLogger("metricbus.journal")

_CHUNK = 256
_BREATH = 50e-6  # a wait this short hands the interpreter over, where sleep(0) may take it back
_RETRY_SECS = 1.0
_COMPLAIN_EVERY = 60.0


class Flush(Control):
    """Asks to be told when everything before it is in the journal."""


class Stop(Control):
    """The last thing the collector does: it ends the segment with this status."""

    def __init__(self, status: Status) -> None:
        super().__init__()
        self.status = status


class Collector:
    """Moves calls from `queue` to `journal`; `on_append` is called after each write."""

    def __init__(
        self,
        queue: CallQueue,
        journal: SegmentWriter,
        flush_secs: float,
        on_append: Callable[[], None],
    ) -> None:
        self.taken = 0  # values taken out of the queue
        self.journalled = 0  # values in the journal
        self.written = 0  # bytes of the segment that count
        self.error: str | None = None
        self._queue = queue
        self._journal = journal
        self._flush_secs = flush_secs
        self._on_append = on_append
        self._told_dropped = 0
        self._complained = -_COMPLAIN_EVERY
        self._thread = threading.Thread(target=self._run, name="metricbus-collector", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def segment(self) -> str:
        """The segment that this collector writes."""
        return self._journal.segment

    def obey(self, control: Control, timeout: float) -> bool:
        """Waits until what was logged before is in the journal; whether it is."""
        self._queue.put_control(control)
        return control.done.wait(timeout)

    def _run(self) -> None:
        stop = None
        while stop is None:
            self._queue.wait(self._flush_secs)
            while stop is None and (calls := self._queue.take(_CHUNK)):
                stop = self._collect(calls)
                time.sleep(_BREATH)
            self._tell_dropped()
        self._queue.close()
        while calls := self._queue.take(_CHUNK):
            self._collect(calls)
        self._close(stop)

    def _collect(self, calls: list[Call | Control]) -> Stop | None:
        """Journals a chunk and obeys the controls in it; the one that says to stop, if any."""
        controls = [call for call in calls if isinstance(call, Control)]
        if controls:
            rows = list(join_rows([call for call in calls if not isinstance(call, Control)]))
        else:
            rows = list(join_rows(cast(list[Call], calls)))
        if rows:
            self._append(rows)
        stop = None
        for control in controls:
            if isinstance(control, Stop):
                stop = control
            else:
                control.done.set()
        return stop

    def _append(self, rows: list[Scalars]) -> None:
        values = sum(len(row.values) for row in rows)
        self.taken += values
        while True:
            try:
                self._journal.append(rows)
            except OSError as error:
                self.error = f"{type(error).__name__}: {error}"
                self._complain("the journal cannot be written, will try again: %s", self.error)
                self._queue.pause(_RETRY_SECS)
            else:
                break
        if self.error:
            _log.warning("the journal can be written again")
            self.error = None
        self.journalled += values
        self.written = self._journal.length
        self._on_append()

    def _close(self, stop: Stop) -> None:
        try:
            self._journal.close(stop.status)
        except OSError as error:
            self.error = f"{type(error).__name__}: {error}"
        self.written = self._journal.length
        self._on_append()
        stop.done.set()

    def _tell_dropped(self) -> None:
        dropped = self._queue.dropped
        if dropped > self._told_dropped:
            self._complain("the queue is full: %s values were dropped so far", f"{dropped:,}")
            self._told_dropped = dropped

    def _complain(self, message: str, *args: object) -> None:
        if time.monotonic() - self._complained >= _COMPLAIN_EVERY:
            self._complained = time.monotonic()
            _log.warning(message, *args)


def join_rows(calls: list[Call]) -> Iterator[Scalars]:
    """Rows from calls: neighbours of the same step and epoch join until a name comes again.

    A row has the time of its first call.
    """
    values: dict[str, int | float] = {}
    row_step = row_epoch = row_time = -1
    for what, value, step, epoch, time_ns in calls:
        together = step == row_step and epoch == row_epoch
        if isinstance(what, str):
            if together and what not in values:
                values[what] = value
                continue
            more = {what: value}
        else:
            if together and values.keys().isdisjoint(what):
                values.update(what)
                continue
            more = what
        if values:
            yield Scalars(step=row_step, epoch=row_epoch, time=row_time, values=values)
        values, row_step, row_epoch, row_time = more, step, epoch, time_ns
    if values:
        yield Scalars(step=row_step, epoch=row_epoch, time=row_time, values=values)

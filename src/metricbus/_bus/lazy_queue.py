"""The queue of a copy of a bus, whose first call has it join the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from metricbus._common.media_base import EncodeJob, LogContext
from metricbus._ingest.queue import Bounds, CallQueue, Control, values_in
from metricbus.errors import MetricBusError

_log = logging.getLogger("metricbus")


class LazyQueue(CallQueue):
    """The queue of a copy that has not joined its run: whatever comes first has it do so.

    `join` gives the queue that takes the calls from then on, and may fail as making a bus may.
    """

    def __init__(self, join: Callable[[], CallQueue]) -> None:
        super().__init__(Bounds())
        self.high_water_mark = [-1]
        self._join = join
        self._joining = threading.RLock()  # a signal handler may log meanwhile
        self._is_joining = False
        self._joined: CallQueue | None = None

    def on_high_water(self) -> None:
        """Joins the run, and hands on what has been logged."""
        with self._joining:
            if self._is_joining:
                return  # who joins will hand it on
            self._is_joining = True
            try:
                self._joined = self._joined or self._join()
                while self.calls:
                    self._hand_on(self._joined)
            except (MetricBusError, OSError) as error:
                self._lose(error)
            finally:
                self._is_joining = False

    def put_medium(self, stamp: LogContext, taken: EncodeJob) -> None:
        """Joins the run, and hands the medium on."""
        self.on_high_water()
        if self._joined is None:
            self.dropped += taken.media
        else:
            self._joined.put_medium(stamp, taken)

    def _hand_on(self, queue: CallQueue) -> None:
        call = self.calls.popleft()
        if isinstance(call, Control):
            queue.put_control(call)
        else:
            queue.put_row(call, values_in(call))

    def _lose(self, error: Exception) -> None:
        if not self.dropped:
            _log.warning(
                "a copy of a bus cannot join the run, and what it logs is dropped: %s", error
            )
        while self.calls:
            call = self.calls.popleft()
            self.dropped += values_in(call)
            if isinstance(call, Control):
                call.done.set()

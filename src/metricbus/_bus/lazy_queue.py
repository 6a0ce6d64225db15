"""The queue of a bus copy, which joins its run at the first call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from metricbus._common.media_base import EncodeJob, LogContext
from metricbus._ingest.queue import CallQueue, Command, QueueLimits, count_call_values
from metricbus.errors import MetricBusError

_log = logging.getLogger("metricbus")


class LazyQueue(CallQueue):
    """A queue that joins the run at the first call, and forwards all calls to the run's queue.

    `join` returns the run's queue. It raises the errors of opening a bus; calls are then dropped.
    """

    def __init__(self, join: Callable[[], CallQueue]) -> None:
        super().__init__(QueueLimits())
        self.high_water_mark = [-1]
        self._join = join
        # Reentrant, because a signal handler may log while this thread joins.
        self._join_lock = threading.RLock()
        self._is_joining = False
        self._run_queue: CallQueue | None = None

    def on_high_water(self) -> None:
        """Join the run if necessary, and forward the calls logged so far."""
        with self._join_lock:
            if self._is_joining:
                return  # an outer call forwards this one too
            self._is_joining = True
            try:
                self._run_queue = self._run_queue or self._join()
                while self.calls:
                    self._forward(self._run_queue)
            except (MetricBusError, OSError) as error:
                self._drop_calls(error)
            finally:
                self._is_joining = False

    def put_medium(self, context: LogContext, job: EncodeJob) -> None:
        """Join the run if necessary, and forward the medium."""
        self.on_high_water()
        if self._run_queue is None:
            self.dropped += job.media
        else:
            self._run_queue.put_medium(context, job)

    def _forward(self, queue: CallQueue) -> None:
        call = self.calls.popleft()
        if isinstance(call, Command):
            queue.put_command(call)
        else:
            queue.put_row(call, count_call_values(call))

    def _drop_calls(self, error: Exception) -> None:
        if not self.dropped:
            _log.warning("A copy of the bus cannot join the run; its values are dropped: %s", error)
        while self.calls:
            call = self.calls.popleft()
            self.dropped += count_call_values(call)
            if isinstance(call, Command):
                call.done.set()

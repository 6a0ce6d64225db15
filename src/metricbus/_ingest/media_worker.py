"""Background thread that encodes media into files and records.

The worker has its own queue, limited in bytes, so encoding an image never delays a number. A medium
is encoded once for all sinks; its records then pass through the collector into the journal. The
first medium starts the thread.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from metricbus._common.media_base import EncodeContext, EncodeJob, LogContext
from metricbus._common.media_records import Medium
from metricbus._common.settings import Overflow
from metricbus._common.throttled_log import OnceLogger, ThrottledLogger
from metricbus._common.wakeup import Wakeup
from metricbus._journal.media_files import MediaWriter

_log = logging.getLogger("metricbus.media")

_JOB_OVERHEAD = 1024  # bytes
_RETRY_SECS = 1.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_QUEUE_FULL = "the media queue is full"
_TIME_IS_UP = "there was no time left to encode it"


class MediaQueueLimits(NamedTuple):
    """The size of the media queue, and the policy when it is full."""

    nbytes: int = 64 << 20
    overflow: Overflow = "block"
    block_secs: float = 5.0


class _QueuedJob(NamedTuple):
    number: int
    context: LogContext
    job: EncodeJob


class MediaWorker:
    """Encodes submitted jobs, and passes the records of each to `deliver` in one call.

    `accepted == delivered + dropped + waiting`. These count media, of which a job may have several.
    """

    def __init__(
        self,
        folder: Path,
        segment: str,
        limits: MediaQueueLimits,
        deliver: Callable[[list[Medium]], None],
    ) -> None:
        self.accepted = 0
        self.delivered = 0
        self.dropped = 0
        self.error: str | None = None
        self._limits = limits
        self._deliver = deliver
        self._writer = MediaWriter(folder, segment)
        self._queue: deque[_QueuedJob] = deque()
        self._last_number = 0
        self._current_number = 0  # 0 while idle
        self._nbytes = 0
        # Reentrant, because a signal handler or a finalizer may log while the lock is held.
        self._lock = threading.RLock()
        self._wakeup = Wakeup()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_time_up = False
        # Set after the `block` policy has timed out: no call blocks again until there is room.
        self._has_timed_out = False
        self._throttled_log = ThrottledLogger(_log)
        self._once = OnceLogger(_log)

    @property
    def waiting(self) -> int:
        """Number of media that have not been passed on yet."""
        return self.accepted - self.delivered - self.dropped

    def put(self, context: LogContext, job: EncodeJob) -> None:
        """Queue a job, or drop it if the worker is closed or the overflow policy says so."""
        with self._lock:
            self.accepted += job.media
            if self._is_closed:
                self._drop(context, job, "it was logged after close()")
                return
        if not self._make_room(job.nbytes):
            with self._lock:
                self._drop(context, job, _QUEUE_FULL)
            return
        with self._lock:
            if self._is_time_up:  # close() returned while this call waited for room
                self._drop(context, job, _TIME_IS_UP)
                return
            if self._thread is None and not self._start():
                self._drop(context, job, "no thread can be started to encode it")
                return
            self._last_number += 1
            self._queue.append(_QueuedJob(self._last_number, context, job))
            self._nbytes += job.nbytes + _JOB_OVERHEAD
        self._wakeup.wake()

    def _start(self) -> bool:
        """Start the thread. Return False at a thread limit, or if the interpreter is exiting."""
        thread = threading.Thread(target=self._run, name="metricbus-media", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def drain(self, timeout: float) -> bool:
        """Wait until all jobs submitted so far are encoded. Return whether that was in time."""
        last_number = self._last_number
        deadline = time.monotonic() + timeout
        while self._has_jobs_up_to(last_number):
            if time.monotonic() >= deadline:
                return False
            # Polling, because a signal handler could deadlock on a lock.
            time.sleep(0.001)
        return True

    def _has_jobs_up_to(self, number: int) -> bool:
        """Check whether a job with at most this number is queued or being encoded."""
        with self._lock:
            return 0 < self._current_number <= number or (
                bool(self._queue) and self._queue[0].number <= number
            )

    def close(self, timeout: float) -> None:
        """Reject further jobs, and drop those that are not encoded within `timeout` seconds."""
        self._is_closed = True
        self.drain(timeout)
        with self._lock:
            self._is_time_up = True
            while self._queue:
                _, context, job = self._queue.popleft()
                self._drop(context, job, _TIME_IS_UP)
        self._wakeup.wake()

    def _make_room(self, nbytes: int) -> bool:
        """Apply the overflow policy. Return whether there is room; an idle worker always has."""
        deadline = time.monotonic() + self._limits.block_secs
        is_worker = threading.current_thread() is self._thread
        while self._nbytes and self._nbytes + nbytes > self._limits.nbytes:
            if self._limits.overflow == "drop_oldest":
                with self._lock:
                    if not self._queue:  # only the job that is being encoded
                        return True
                    _, context, job = self._queue.popleft()
                    self._nbytes -= job.nbytes + _JOB_OVERHEAD
                    self._drop(context, job, _QUEUE_FULL)
            elif self._limits.overflow == "drop_newest" or is_worker or self._has_timed_out:
                return False
            elif time.monotonic() > deadline:
                self._has_timed_out = True
                return False
            else:
                time.sleep(0.001)
        self._has_timed_out = False
        return True

    def _drop(self, context: LogContext, job: EncodeJob, reason: str) -> None:
        self.dropped += job.media
        self.error = f"{context.name!r} at step {context.step} was dropped: {reason}"
        self._throttled_log.warn("%s", self.error, key=context.name)

    def _run(self) -> None:
        while not self._is_time_up:
            with self._lock:
                queued = self._queue.popleft() if self._queue else None
                self._current_number = queued.number if queued else 0
            if queued is None:
                self._wakeup.wait()
                continue
            _, context, job = queued
            records = self._encode(context, job)
            with self._lock:
                self._nbytes -= job.nbytes + _JOB_OVERHEAD
                if records and self._is_time_up:
                    self._drop(context, job, _TIME_IS_UP)
                    records = []
            if records:
                self._deliver(records)
                self.delivered += job.media
            # Only now, because drain() waits until the records are in the collector's queue.
            self._current_number = 0

    def _encode(self, context: LogContext, job: EncodeJob) -> list[Medium]:
        """Return the records of a job. If encoding fails, drop the job and return none."""
        while True:
            try:
                encoded = job.encode(EncodeContext(context, self._writer, self._once))
                return encoded if isinstance(encoded, list) else [encoded]
            except BaseException as error:  # encoders run third-party code
                if getattr(error, "errno", None) in _DISK_FULL and not self._is_time_up:
                    self._throttled_log.warn("media cannot be written; retrying: %s", error)
                    time.sleep(_RETRY_SECS)
                    continue
                with self._lock:
                    self._drop(context, job, f"{type(error).__name__}: {error}")
                return []

"""The media worker: one thread that turns what `log()` took of media into files and records.

It has a queue of its own, bounded by bytes, so a picture never holds a number back. Each medium is
encoded once for all sinks; its record then goes through the collector into the journal. The thread
is started by the first medium.
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
from metricbus._common.records import Medium
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._common.wakeup import Wakeup
from metricbus._ingest.queue import Overflow
from metricbus._journal.media_files import MediaWriter

_log = logging.getLogger("metricbus.media")

_OVERHEAD = 1024  # bytes of a medium beside its content
_RETRY_SECS = 1.0
_MOST_NAMES = 1000  # that have warnings of their own
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MediaBounds(NamedTuple):
    """How much may wait to be encoded, and what happens beyond it."""

    nbytes: int = 64 << 20
    overflow: Overflow = "block"
    block_secs: float = 5.0


class _Job(NamedTuple):
    """A medium that waits."""

    number: int
    stamp: LogContext
    taken: EncodeJob


class MediaWorker:
    """Encodes what is `put` and gives the records to `deliver`, those of a job at once.

    `accepted == delivered + dropped + waiting`, in media, of which a job may have several.
    """

    def __init__(
        self,
        folder: Path,
        segment: str,
        bounds: MediaBounds,
        deliver: Callable[[list[Medium]], None],
    ) -> None:
        self.accepted = 0
        self.delivered = 0
        self.dropped = 0
        self.error: str | None = None
        self._bounds = bounds
        self._deliver = deliver
        self._writer = MediaWriter(folder, segment)
        self._jobs: deque[_Job] = deque()
        self._queued = 0  # jobs so far: the number of the last one
        self._current = 0  # the number of the job at work, 0 if none is
        self._nbytes = 0
        self._lock = threading.RLock()  # a signal handler, or a finaliser, may log meanwhile
        self._bell = Wakeup()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._given_up = False
        self._waited_in_vain = False
        self._complaints = ThrottledLogger(_log)
        self._dropped_names: dict[str, ThrottledLogger] = {}
        self._told: set[tuple[str, str]] = set()

    @property
    def waiting(self) -> int:
        """Media that are not in the collector's hands yet."""
        return self.accepted - self.delivered - self.dropped

    def put(self, stamp: LogContext, taken: EncodeJob) -> None:
        """Takes a medium, or drops it by the policy when too much waits."""
        with self._lock:
            self.accepted += taken.media
            if self._closed:
                self._drop(stamp, taken, "it was logged after close()")
                return
        if not self._make_room(taken.nbytes):
            with self._lock:
                self._drop(stamp, taken, "too much waits to be encoded")
            return
        with self._lock:
            if self._given_up:  # meanwhile
                self._drop(stamp, taken, "there was no time left to encode it")
                return
            if self._thread is None and not self._start():
                self._drop(stamp, taken, "no thread can be started to encode it")
                return
            self._queued += 1
            self._jobs.append(_Job(self._queued, stamp, taken))
            self._nbytes += taken.nbytes + _OVERHEAD
        self._bell.ring()

    def _start(self) -> bool:
        """Starts the thread; there may be no room for one, or the interpreter may be ending."""
        thread = threading.Thread(target=self._run, name="metricbus-media", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def drain(self, timeout: float) -> bool:
        """Waits until what has been put so far is encoded; whether it is."""
        target = self._queued
        deadline = time.monotonic() + timeout
        while self._has_up_to(target):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)  # polling, because a lock here could meet a signal handler
        return True

    def _has_up_to(self, number: int) -> bool:
        """Whether a job up to this number waits or is at work; later ones do not matter."""
        with self._lock:
            return 0 < self._current <= number or (
                bool(self._jobs) and self._jobs[0].number <= number
            )

    def close(self, timeout: float) -> None:
        """Takes nothing more, and gives up what is not encoded in time."""
        self._closed = True
        self.drain(timeout)
        with self._lock:
            self._given_up = True
            while self._jobs:
                _, stamp, taken = self._jobs.popleft()
                self._drop(stamp, taken, "there was no time left to encode it")
        self._bell.ring()

    def _make_room(self, nbytes: int) -> bool:
        """Holds the bound by its policy; whether there is room now. One medium always has it."""
        deadline = time.monotonic() + self._bounds.block_secs
        by_itself = threading.current_thread() is self._thread
        while self._nbytes and self._nbytes + nbytes > self._bounds.nbytes:
            if self._bounds.overflow == "drop_oldest":
                with self._lock:
                    if not self._jobs:  # the one that is being encoded is the only one
                        return True
                    _, stamp, taken = self._jobs.popleft()
                    self._nbytes -= taken.nbytes + _OVERHEAD
                    self._drop(stamp, taken, "too much waits to be encoded")
            elif self._bounds.overflow == "drop_newest" or by_itself or self._waited_in_vain:
                return False
            elif time.monotonic() > deadline:
                self._waited_in_vain = True  # no second wait until there is room again
                return False
            else:
                time.sleep(0.001)
        self._waited_in_vain = False
        return True

    def _drop(self, stamp: LogContext, taken: EncodeJob, why: str) -> None:
        self.dropped += taken.media
        self.error = f"{stamp.name!r} at step {stamp.step} was dropped: {why}"
        if len(self._dropped_names) < _MOST_NAMES:
            complaints = self._dropped_names.setdefault(stamp.name, ThrottledLogger(_log))
            complaints.warn("%s", self.error)

    def _run(self) -> None:
        while not self._given_up:
            with self._lock:
                job = self._jobs.popleft() if self._jobs else None
                self._current = job.number if job else 0
            if job is None:
                self._bell.wait()
                continue
            _, stamp, taken = job
            records = self._encode(stamp, taken)
            with self._lock:
                self._nbytes -= taken.nbytes + _OVERHEAD
                if records and self._given_up:
                    self._drop(stamp, taken, "there was no time left to encode it")
                    records = []
            if records:
                self._deliver(records)
                self.delivered += taken.media
            self._current = 0  # not before: who drains wants it in the collector's queue

    def _encode(self, stamp: LogContext, taken: EncodeJob) -> list[Medium]:
        """The records of a job; none of them, and a count, if one cannot be had."""
        while True:
            try:
                found = taken.encode(EncodeContext(stamp, self._writer, self._told))
                return found if isinstance(found, list) else [found]
            except BaseException as error:  # an encoder may do anything
                if getattr(error, "errno", None) in _FULL and not self._given_up:
                    self._complaints.warn("media cannot be written, will try again: %s", error)
                    time.sleep(_RETRY_SECS)
                    continue
                with self._lock:
                    self._drop(stamp, taken, f"{type(error).__name__}: {error}")
                return []

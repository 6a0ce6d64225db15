"""A bus on a rank that does not write: it has no run, opens no file and starts no process.

Its values still pass through the definitions, because what is reduced across ranks needs every
rank's part, and because `bus.last()` and `bus.end_epoch()` answer here as they do on the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from metricbus._bus.session import Session
from metricbus._common.distributed import Rank
from metricbus._common.media_base import EncodeJob, LogContext
from metricbus._common.records import DroppedCounts, Record, Status
from metricbus._common.settings import Settings
from metricbus._delivery.manager import DeliveryManager
from metricbus._delivery.report import Report
from metricbus._ingest.collector import Collector
from metricbus._ingest.queue import QueueLimits, CallQueue
from metricbus._journal.run import RunFolder


class NullJournal:
    """Takes records, and writes none."""

    segment = ""
    lines = 0
    length = 0

    def append(self, records: Sequence[Record]) -> None:
        """Nothing is written."""

    def sync(self) -> None:
        """There is nothing to force onto a disk."""

    def close(self, status: Status = "finished", dropped: DroppedCounts | None = None) -> None:
        """There is nothing to end."""


class NullMediaWorker:
    """Takes media, and encodes none."""

    waiting = 0
    dropped = 0
    error = None

    def put(self, stamp: LogContext, taken: EncodeJob) -> None:
        """It is let go."""

    def drain(self, timeout: float) -> bool:
        """There is nothing to wait for."""
        return True

    def close(self, timeout: float) -> None:
        """There is nothing to end."""


class NullSession(Session):
    """What works behind the bus of a rank that does not write."""

    def __init__(self, settings: Settings, rank: Rank) -> None:
        queue = CallQueue(QueueLimits(calls=settings.queue_size, nbytes=settings.queue_bytes))
        queue.media = NullMediaWorker()
        nowhere = DeliveryManager(RunFolder(Path()), [], 1, "off", 0.0)
        collector = Collector(queue, NullJournal(), settings.flush_secs, nowhere)
        parts = queue, collector, queue.media, nowhere
        super().__init__(None, *parts, initial_rank=rank, owner=False)

    def flush(self, timeout: float) -> Report:
        """There is nowhere to bring anything."""
        return Report()

    def stats(self) -> Report:
        """Nothing is logged here: the ranks that write have the counts."""
        return Report()

    def close(self, status: Status, timeout: float) -> Report:
        """Ends the thread."""
        deadline = time.monotonic() + timeout
        super().close(status, max(0.0, deadline - time.monotonic()))
        return Report()

"""The session of a rank that does not write: no run, no files, no delivery process.

Its values still pass through the definitions. Reductions across ranks need the partial aggregates
of every rank, and `bus.last()` and `bus.end_epoch()` return the same here as on other ranks.
"""

from __future__ import annotations

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
from metricbus._ingest.media_worker import MediaQueueLimits, MediaWorker
from metricbus._ingest.queue import CallQueue, QueueLimits
from metricbus._journal.run import RunFolder


class NullJournal:
    """A journal that discards all records."""

    segment = ""
    lines = 0
    length = 0

    def append(self, records: Sequence[Record]) -> None:
        """Discard the records."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self, status: Status = "finished", dropped: DroppedCounts | None = None) -> None:
        """Do nothing."""


class NullMediaWorker(MediaWorker):
    """A media worker that discards all media."""

    def put(self, context: LogContext, job: EncodeJob) -> None:
        """Discard the medium."""


class NullSession(Session):
    """A session that reduces values but writes and delivers nothing. All its counts are 0."""

    def __init__(self, settings: Settings, rank: Rank) -> None:
        queue = CallQueue(QueueLimits(calls=settings.queue_size, nbytes=settings.queue_bytes))
        media = queue.media = NullMediaWorker(Path(), "", MediaQueueLimits(), lambda media: None)
        delivery = DeliveryManager(RunFolder(Path()), [], 1, "off", 0.0)
        collector = Collector(queue, NullJournal(), settings.flush_secs, delivery)
        super().__init__(
            None, None, queue, collector, media, delivery=delivery, initial_rank=rank, owner=False
        )

    def flush(self, timeout: float) -> Report:
        """Return empty counts at once."""
        return Report()

    def stats(self) -> Report:
        """Return empty counts. The ranks that write have the real ones."""
        return Report()

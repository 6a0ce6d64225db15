"""The collector: the size of its chunks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from metricbus._aggregate.rules import Definition
from metricbus._common.records import Call, DroppedCounts, PartialAggregates, Record, Status
from metricbus._ingest import collector as collector_module
from metricbus._ingest.collector import Collector
from metricbus._ingest.commands import Define, Stop
from metricbus._ingest.queue import CallQueue, Command, QueueLimits
from tests.helpers.limits import HANG_SECS


class CountingJournal:
    """A journal that records the number of records of each write."""

    segment, lines, length = "0001", 0, 0

    def __init__(self) -> None:
        self.chunks: list[int] = []

    def append(self, records: Sequence[Record]) -> None:
        self.chunks.append(len(records))

    def sync(self) -> None: ...

    def close(self, status: Status = "finished", dropped: DroppedCounts | None = None) -> None: ...


class NullListener:
    def wake(self) -> None: ...

    def end(self, status: Status) -> None: ...


def chunk_sizes(calls: list[Call]) -> list[int]:
    """Return the sizes of the chunks in which a collector processes queued calls."""
    queue, journal = CallQueue(QueueLimits(calls=1 << 20, nbytes=1 << 40)), CountingJournal()
    for call in calls:
        if isinstance(call[0], dict):
            queue.put_row(call, len(call[0]))
        else:
            queue.put(call)
    collector = Collector(queue, journal, 0.0, NullListener())
    queue.put_command(stop := Stop("finished"))
    collector.start()
    assert stop.done.wait(HANG_SECS)
    return [size for size in journal.chunks if size]


def test_chunk_size_grows_with_the_backlog() -> None:
    chunks = chunk_sizes([("x", 0.5, step, 0, 0) for step in range(60_000)])
    assert sum(chunks) == 60_000
    assert chunks[0] == 2048
    assert min(chunks[:-1]) == 256
    assert chunks[:-1] == sorted(chunks[:-1], reverse=True)


def test_chunk_size_is_small_for_wide_mappings() -> None:
    row = {f"layer{i}": 0.5 for i in range(1000)}
    chunks = chunk_sizes([(row, 1.0, step, 0, 0) for step in range(50)])
    assert sum(chunks) == 50
    assert max(chunks) <= 9  # about 1 MiB of 128 bytes per value


class PartialsJournal(CountingJournal):
    """A journal that notes whether partial aggregates have been written."""

    has_partials = False

    def append(self, records: Sequence[Record]) -> None:
        self.has_partials |= any(isinstance(record, PartialAggregates) for record in records)


class BusyQueue(CallQueue):
    """A queue that has a call at each take, until partial aggregates are in the journal.

    Gives up after `remaining` calls.
    """

    def __init__(self, journal: PartialsJournal) -> None:
        super().__init__(QueueLimits())
        self.stop = Stop("finished")
        self.remaining = 1000
        self._journal = journal

    def take(self, limit: int) -> list[Call | Command]:
        self.remaining -= 1
        if self._journal.has_partials or self.remaining <= 0:
            self.put_command(self.stop)
        else:
            self.put(("loss", 0.5, 0, 0, 0))
        return super().take(limit)


def test_partial_aggregates_are_written_while_the_queue_is_never_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector_module, "_CHECKPOINT_EVERY", 0.0)
    journal = PartialsJournal()
    queue = BusyQueue(journal)
    queue.put_command(Define(Definition("loss", every=10**9, reduce="mean"), default=False))
    Collector(queue, journal, 0.0, NullListener()).start()
    assert queue.stop.done.wait(HANG_SECS)
    assert queue.remaining > 0

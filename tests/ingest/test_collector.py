"""The collector: the size of its chunks."""

from __future__ import annotations

from collections.abc import Sequence

from metricbus._common.records import Call, DroppedCounts, Record, Status
from metricbus._ingest.collector import Collector
from metricbus._ingest.commands import Stop
from metricbus._ingest.queue import CallQueue, QueueLimits
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

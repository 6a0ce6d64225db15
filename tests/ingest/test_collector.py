"""The collector: how much it takes at a time."""

from __future__ import annotations

from collections.abc import Sequence

from metricbus._common.records import Call, DroppedCounts, Record, Status
from metricbus._ingest.collector import Collector
from metricbus._ingest.commands import Stop
from metricbus._ingest.queue import QueueLimits, CallQueue


class Counting:
    """A journal that remembers how many records came at a time."""

    segment, lines, length = "0001", 0, 0

    def __init__(self) -> None:
        self.chunks: list[int] = []

    def append(self, records: Sequence[Record]) -> None:
        self.chunks.append(len(records))

    def sync(self) -> None: ...

    def close(self, status: Status = "finished", dropped: DroppedCounts | None = None) -> None: ...


class Nobody:
    def wake(self) -> None: ...

    def end(self, status: Status) -> None: ...


def chunks_of(calls: list[Call]) -> list[int]:
    """The sizes in which a collector takes what waits in the queue."""
    queue, journal = CallQueue(QueueLimits(calls=1 << 20, nbytes=1 << 40)), Counting()
    for call in calls:
        if isinstance(call[0], dict):
            queue.put_row(call, len(call[0]))
        else:
            queue.put(call)
    collector = Collector(queue, journal, 0.0, Nobody())
    queue.put_command(stop := Stop("finished"))
    collector.start()
    assert stop.done.wait(30)
    return [size for size in journal.chunks if size]


def test_a_backlog_is_taken_in_larger_chunks_that_shrink_with_it() -> None:
    chunks = chunks_of([("x", 0.5, step, 0, 0) for step in range(60_000)])
    assert sum(chunks) == 60_000
    assert chunks[0] == 2048
    assert min(chunks[:-1]) == 256
    assert chunks[:-1] == sorted(chunks[:-1], reverse=True)


def test_wide_mappings_are_taken_a_few_at_a_time() -> None:
    row = {f"layer{i}": 0.5 for i in range(1000)}
    chunks = chunks_of([(row, 1.0, step, 0, 0) for step in range(50)])
    assert sum(chunks) == 50
    assert max(chunks) <= 9  # of 128 bytes a value, about a MiB

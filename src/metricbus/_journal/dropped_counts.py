"""What a run has dropped, as its segments tell."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from metricbus._common.records import Dropped, Drops, End, Record


class DroppedCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The values that are in no file, by why; at least these, unless `is_final`.

    It is final when every segment's writer has ended it and said so: not while the run is live, nor
    where a process was killed, nor of a journal whose writer does not count them.
    """

    queue: int = 0
    media: int = 0
    unwritable: int = 0
    is_final: bool = False

    @property
    def total(self) -> int:
        """All of them."""
        return self.queue + self.media + self.unwritable


class SegmentDrops:
    """What one segment tells, from its records in their order; the last ones are enough."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.newest = Drops()
        self.is_final = False
        for record in records:
            self.take(record)

    def take(self, record: Record | None) -> None:
        """The next record."""
        if isinstance(record, Dropped):
            self.newest = record.dropped
        elif isinstance(record, End) and record.dropped is not None:
            self.newest, self.is_final = record.dropped, True


def total_dropped(segments: Iterable[SegmentDrops]) -> DroppedCounts:
    """What all segments of a run tell together."""
    segments = list(segments)
    return DroppedCounts(
        queue=sum(one.newest.queue for one in segments),
        media=sum(one.newest.media for one in segments),
        unwritable=sum(one.newest.unwritable for one in segments),
        is_final=bool(segments) and all(one.is_final for one in segments),
    )

"""Counts of the values that a run has dropped, added up over its segments."""

from __future__ import annotations

from collections.abc import Iterable

from metricbus._common.records import Dropped, DroppedCounts, End, Record


class RunDroppedCounts(DroppedCounts, frozen=True, kw_only=True, omit_defaults=False):
    """The dropped values of a whole run; lower bounds unless `is_final` is set.

    The counts are final once every segment has an end record with counts. They never are for a live
    run, after a process was killed, or if a version that did not count wrote a segment.
    """

    is_final: bool = False


class SegmentDroppedCounts:
    """The counts that one segment reports; `is_final` once its end record has been read."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.counts = DroppedCounts()
        self.is_final = False
        for record in records:
            self.update(record)

    def update(self, record: Record | None) -> None:
        """Process the next record of the segment; records without counts are ignored."""
        if isinstance(record, Dropped):
            self.counts = record.dropped
        elif isinstance(record, End) and record.dropped is not None:
            self.counts, self.is_final = record.dropped, True


def total_dropped(segments: Iterable[SegmentDroppedCounts]) -> RunDroppedCounts:
    """Return the sum over all segments of a run."""
    segments = list(segments)
    return RunDroppedCounts(
        queue=sum(segment.counts.queue for segment in segments),
        media=sum(segment.counts.media for segment in segments),
        unwritable=sum(segment.counts.unwritable for segment in segments),
        is_final=bool(segments) and all(segment.is_final for segment in segments),
    )

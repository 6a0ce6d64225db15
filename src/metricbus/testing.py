"""For tests of code that logs: a sink that keeps everything in memory.

sink = MemorySink()
with MetricBus(sinks=[sink], dir=tmp_path) as bus:
    train(bus)
assert sink.series("train/loss")[-1].value < 0.1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metricbus._common.media_records import MEDIA_RECORD_TYPES, MediumRecord
from metricbus._common.records import Number, Scalars, Status
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.run import Run
from metricbus.sinks.base import Sink

__all__ = ["MemorySink", "Point"]


class Point(NamedTuple):
    """One value with where it stands; `time` in nanoseconds since 1970-01-01 UTC."""

    step: int
    epoch: int
    time: int
    value: Number


class MemorySink(Sink):
    """Keeps the rows in `records`, the run in `run`, and how it ended in `status`.

    `media()` has the media, and `files` reads their files.

    They are complete after `bus.flush()` or `bus.close()`.
    """

    kinds = (Scalars, *MEDIA_RECORD_TYPES)

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None
        self.status: Status = "running"
        self.records: list[Scalars] = []
        self._media: list[MediumRecord] = []

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Remembers the run."""
        self.run = run
        self.files = MediaFolder(folder)

    def write(self, records: Sequence[Any]) -> None:
        """Keeps the records."""
        for record in records:
            if isinstance(record, Scalars):
                self.records.append(record)
            else:
                self._media.append(record)

    def close(self, status: Status) -> None:
        """Remembers how the run ended."""
        self.status = status

    def names(self) -> list[str]:
        """All names of numbers that came, in the order in which they first came."""
        return list(dict.fromkeys(name for record in self.records for name in record.values))

    def series(self, name: str) -> list[Point]:
        """The values of one name, in their order."""
        return [
            Point(record.step, record.epoch, record.time, record.values[name])
            for record in self.records
            if name in record.values
        ]

    def media(self, name: str | None = None) -> list[MediumRecord]:
        """The media of one name, or of all, in their order."""
        return [record for record in self._media if name in (None, record.name)]

"""A sink that keeps everything in memory, for tests of code that logs.

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
from metricbus._common.records import Number, RunUpdate, ScalarRow, Status
from metricbus._journal.media_files import MediaFolder
from metricbus._journal.run import Run
from metricbus.sinks.base import Sink

__all__ = ["MemorySink", "Point"]


class Point(NamedTuple):
    """One value of a series; `time` is in nanoseconds since 1970-01-01 UTC."""

    step: int
    epoch: int
    time: int
    value: Number


class MemorySink(Sink):
    """Sink that keeps everything it receives in memory.

    `records` contains the rows, and `media()` returns the media records; `files` reads their files.
    `run` is the run, with its config, tags and summary, and `status` its final status. All of this
    is complete after `bus.flush()` or `bus.close()`.
    """

    kinds = (ScalarRow, RunUpdate, *MEDIA_RECORD_TYPES)

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None
        self.status: Status = "running"
        self.records: list[ScalarRow] = []
        self._media: list[MediumRecord] = []

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Keep the run."""
        self.run = run
        self.files = MediaFolder(folder)

    def write(self, records: Sequence[Any]) -> None:
        """Keep the records."""
        for record in records:
            if isinstance(record, ScalarRow):
                self.records.append(record)
            elif isinstance(record, RunUpdate):
                self.run = self.run and self.run.updated(record)
            else:
                self._media.append(record)

    def close(self, status: Status) -> None:
        """Keep the final status."""
        self.status = status

    def names(self) -> list[str]:
        """Return the names of all series, in the order of their first values."""
        return list(dict.fromkeys(name for record in self.records for name in record.values))

    def series(self, name: str) -> list[Point]:
        """Return the values of one name, in the order in which they were received."""
        return [
            Point(record.step, record.epoch, record.time, record.values[name])
            for record in self.records
            if name in record.values
        ]

    def media(self, name: str | None = None) -> list[MediumRecord]:
        """Return the media records of one name, or of all, in the order of receipt."""
        return [record for record in self._media if name in (None, record.name)]

"""Writes one segment of the journal: append-only JSON lines, each batch all or nothing.

Every segment has exactly one writer, and no process appends to a segment that another one created,
because its last line may be torn. Locks are therefore not needed, and network file systems are
safe.

A batch is normally written by a single `write` call, into the page cache: it survives the death of
the process, but not a power cut. If a write fails halfway, for example because the disk is full,
the segment is truncated to its last whole batch before anything else is written.

docs/journal.md describes the file format for readers in other languages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from metricbus._common.files import AppendFile
from metricbus._common.processes import this_process
from metricbus._common.records import (
    FORMAT_VERSION,
    DroppedCounts,
    End,
    Header,
    Record,
    Status,
    encode,
)
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._journal.segment_reader import SUFFIX
from metricbus._journal.segment_summary import SummaryWriter, summary_path

_log = logging.getLogger("metricbus.journal")


class Journal(Protocol):
    """The segment to which the collector appends its records.

    `lines` and `length` are the numbers of lines and bytes written in whole batches.
    """

    segment: str
    lines: int
    length: int

    def append(self, records: Sequence[Record]) -> None:
        """Append all records or, if `OSError` is raised, none of them."""

    def sync(self) -> None:
        """Force written data to disk if `fsync` is `"flush"`."""

    def close(self, status: Status = "finished", dropped: DroppedCounts | None = None) -> None:
        """Write the end record, with the dropped counts if they are known, and close the file."""


class SegmentWriter:
    """Writer of one new segment in `folder`; each `append` is all or nothing."""

    def __init__(
        self,
        folder: Path,
        run: str,
        rank: int = 0,
        attempt: int = 1,
        fsync: Literal["never", "flush", "always"] = "never",
    ) -> None:
        """Create the segment and write its header. Raises `OSError` if that fails.

        `fsync` says when data is forced to disk, to survive a power cut: after each `append`
        (`"always"`), on each `sync` (`"flush"`), or never.
        """
        self._file, self.segment = _create_segment(folder)
        self.lines = self.length = 0
        self._fsync = fsync
        self._summary: SummaryWriter | None = SummaryWriter(summary_path(folder, self.segment))
        self._warnings = ThrottledLogger(_log)
        writer = this_process()
        header = Header(
            format=FORMAT_VERSION,
            run=run,
            segment=self.segment,
            host=writer.host,
            pid=writer.pid,
            process_started=writer.started,
            rank=rank,
            attempt=attempt,
            time=time.time_ns(),
        )
        self.append([header])

    def append(self, records: Sequence[Record]) -> None:
        """Append all records or, if `OSError` is raised, none of them."""
        data = encode(records)
        self._file.append(data)
        self.lines += len(records)
        self.length = self._file.length
        self._summarize(records, data)
        if self._fsync == "always":
            self._force_to_disk()

    def _summarize(self, records: Sequence[Record], data: bytes) -> None:
        """Add written records to the summary; without any, close it."""
        # The journal is complete, whatever happens to its statistics.
        try:
            if self._summary is not None and records:
                self._summary.add(records, data)
            elif self._summary is not None:
                self._summary.close()
        except Exception:
            self._summary = None
            _log.info("segment %s is no longer summarized", self.segment, exc_info=True)

    def sync(self) -> None:
        """Force written data to disk if `fsync` is `"flush"`."""
        if self._fsync == "flush":
            self._force_to_disk()

    def _force_to_disk(self) -> None:
        try:
            self._file.sync()
        except OSError as error:
            # The data is written; only a power cut could lose it.
            self._warnings.warn("the journal may not survive a power cut: %s", error)

    def close(self, status: Status = "finished", dropped: DroppedCounts | None = None) -> None:
        """Write the end record, if that is possible, and close the file."""
        try:
            self.append([End(status=status, time=time.time_ns(), dropped=dropped)])
            self.sync()
        finally:
            self._file.close()
            self._summarize((), b"")


def _create_segment(folder: Path) -> tuple[AppendFile, str]:
    """Create the file with the next free number, exclusively: two writers never share one."""
    numbers = [int(path.stem) for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal()]
    number = max(numbers, default=0)
    while True:
        number += 1
        segment = f"{number:04d}"
        try:
            return AppendFile(folder / (segment + SUFFIX), new=True), segment
        except FileExistsError:
            continue

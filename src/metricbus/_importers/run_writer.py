"""Writes an imported run: completely, or not at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from metricbus._common.media_base import EncodeContext, LogContext
from metricbus._common.media_records import Medium, MediumRecord
from metricbus._common.records import DroppedCounts, Record, Rewind, ScalarRow, Status
from metricbus._common.throttled_log import OnceLogger
from metricbus._journal.media_files import MediaWriter
from metricbus._journal.run import create_run, plain_config
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.errors import ConfigError

_BATCH_RECORDS = 1000


class ImportTarget(NamedTuple):
    """The root folder of runs and the identity of the new run; by default its id is generated."""

    root: Path
    name: str
    id: str | None = None
    project: str | None = None


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """An imported run; `left_out` describes the data that could not be imported."""

    folder: str
    id: str
    name: str
    rows: int
    values: int
    media: int
    series: int
    left_out: list[str]


class SkipCounts:
    """Counts of the data that were not imported, by reason, with the first occurrence of each."""

    def __init__(self) -> None:
        self._by_reason: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, location: str = "", count: int = 1) -> None:
        """Count data under `reason`; only the first `location` of a reason is kept."""
        previous, first = self._by_reason.get(reason, (0, location))
        self._by_reason[reason] = previous + count, first

    def describe(self) -> list[str]:
        """Return one line per reason."""
        return [
            f"{reason}: {count:,}" + (f" (first: {first})" if first else "")
            for reason, (count, first) in self._by_reason.items()
        ]


class RunWriter:
    """Writes one new run. `config` and `status` can be set until `finish` is called."""

    def __init__(self, target: ImportTarget, source: Path) -> None:
        """Create the run folder. Raises `ConfigError` if that fails."""
        notes = f"imported from {source.absolute()}"
        self._folder, self._run = create_run(
            target.root,
            id=target.id,
            name=target.name,
            config={},
            project=target.project,
            notes=notes,
        )
        self._journal = SegmentWriter(self._folder.journal, self._run.id)
        self._media_writer = MediaWriter(self._folder.path, self._journal.segment)
        self._once = OnceLogger(logging.getLogger("metricbus.media"))
        self._batch: list[Record] = []
        self._rows = self._values = self._media = 0
        self._names: set[str] = set()
        self._time_span: tuple[int, int] | None = None
        self.skipped = SkipCounts()
        self.config: Mapping[str, Any] = {}
        self.status: Status = "finished"

    def add_row(self, row: ScalarRow) -> None:
        """Append a row of scalars."""
        self._rows += 1
        self._values += len(row.values)
        self._names.update(row.values)
        self._append(row)

    def add_rewind(self, rewind: Rewind) -> None:
        """Append a rewind, which supersedes earlier rows."""
        self._append(rewind)

    def add_medium(self, record: Medium) -> None:
        """Append a medium, whose files were written with `encode_context`."""
        self._media += 1
        self._names.add(record.name)
        self._append(record)

    def encode_context(self, log_context: LogContext) -> EncodeContext:
        """Return the context that writes the files of a medium into the run folder."""
        return EncodeContext(log_context, self._media_writer, self._once)

    def _append(self, record: ScalarRow | Rewind | MediumRecord) -> None:
        first, last = self._time_span or (record.time, record.time)
        self._time_span = min(first, record.time), max(last, record.time)
        self._batch.append(record)  # type: ignore[arg-type]  # the media are a closed set
        if len(self._batch) >= _BATCH_RECORDS:
            self._write_batch()

    def _write_batch(self) -> None:
        self._journal.append(self._batch)
        self._batch = []

    def finish(self) -> ImportResult:
        """Finish the run at the time of its latest record. Raises `ConfigError` if it is empty."""
        if self._time_span is None or not self._names:
            skipped = "; ".join(self.skipped.describe())
            raise ConfigError(f"Nothing to import{f'. Skipped: {skipped}' if skipped else ''}")
        self._write_batch()
        self._journal.close(self.status, DroppedCounts())
        started, ended = self._time_span
        run = msgspec.structs.replace(
            self._run,
            config=plain_config(self.config),
            status=self.status,
            started=started,
            ended=ended,
            program="",
        )
        self._folder.save(run)
        return ImportResult(
            folder=str(self._folder.path),
            id=run.id,
            name=run.name,
            rows=self._rows,
            values=self._values,
            media=self._media,
            series=len(self._names),
            left_out=self.skipped.describe(),
        )

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove the run folder after an error or an interrupt."""
        if kind is not None:
            shutil.rmtree(self._folder.path, ignore_errors=True)

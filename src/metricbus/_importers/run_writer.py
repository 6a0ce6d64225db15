"""A run that is made of somebody else's log: whole, or not there at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from metricbus._common.media_base import EncodeContext, LogContext
from metricbus._common.media_records import MediumRecord
from metricbus._common.records import DroppedCounts, Medium, Record, Rewind, Scalars, Status
from metricbus._journal.media_files import MediaWriter
from metricbus._journal.run import create_run, plain_config
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.errors import ConfigError

_BATCH = 1000  # records that are written at once


class ImportTarget(NamedTuple):
    """The folder of the runs, and what the new run is called there."""

    root: Path
    name: str
    id: str | None = None
    project: str | None = None


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an import has made; `left_out` tells what was not taken, each in a sentence."""

    folder: str
    id: str
    name: str
    rows: int
    values: int
    media: int
    series: int
    left_out: list[str]


class SkipCounts:
    """What was not taken: how often for each reason, and where first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, where: str = "", times: int = 1) -> None:
        """Counts it under `what`; `where` is told of the first alone."""
        count, first = self._found.get(what, (0, where))
        self._found[what] = count + times, first

    def told(self) -> list[str]:
        """A line for each reason."""
        return [
            f"{what}: {count:,}" + (f", the first {first}" if first else "")
            for what, (count, first) in self._found.items()
        ]


class RunWriter:
    """Writes one new run, in the order in which it is given rows and media.

    `config` and `status` may be set until it ends.
    """

    def __init__(self, to: ImportTarget, source: Path) -> None:
        """Makes the run's folder; `ConfigError` if that cannot be."""
        notes = f"imported from {source.absolute()}"
        self._folder, self._run = create_run(
            to.root, id=to.id, name=to.name, config={}, project=to.project, notes=notes
        )
        self._journal = SegmentWriter(self._folder.journal, self._run.id)
        self._media = MediaWriter(self._folder.path, self._journal.segment)
        self._told: set[tuple[str, str]] = set()
        self._batch: list[Record] = []
        self._rows = self._values = self._pictures = 0
        self._names: set[str] = set()
        self._times: tuple[int, int] | None = None
        self.left_out = SkipCounts()
        self.config: Mapping[str, Any] = {}
        self.status: Status = "finished"

    def row(self, row: Scalars) -> None:
        """Takes a row of numbers."""
        self._rows += 1
        self._values += len(row.values)
        self._names.update(row.values)
        self._add(row)

    def rewind(self, rewind: Rewind) -> None:
        """Takes a word that supersedes rows."""
        self._add(rewind)

    def medium(self, record: Medium) -> None:
        """Takes a medium, whose files `work` has written."""
        self._pictures += 1
        self._names.add(record.name)
        self._add(record)

    def work(self, stamp: LogContext) -> EncodeContext:
        """What a medium's files are written with."""
        return EncodeContext(stamp, self._media, self._told)

    def _add(self, record: Scalars | Rewind | MediumRecord) -> None:
        first, last = self._times or (record.time, record.time)
        self._times = min(first, record.time), max(last, record.time)
        self._batch.append(record)  # type: ignore[arg-type]  # the media are a closed set
        if len(self._batch) >= _BATCH:
            self._write()

    def _write(self) -> None:
        self._journal.append(self._batch)
        self._batch = []

    def end(self) -> ImportResult:
        """Ends the run, at the time of its last record; `ConfigError` if there was none."""
        if self._times is None or not self._names:
            told = "; ".join(self.left_out.told())
            raise ConfigError(f"there is nothing to import{f' ({told})' if told else ''}")
        self._write()
        self._journal.close(self.status, DroppedCounts())
        started, ended = self._times
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
            media=self._pictures,
            series=len(self._names),
            left_out=self.left_out.told(),
        )

    def discard(self) -> None:
        """Takes the run away, as if it had never been begun."""
        shutil.rmtree(self._folder.path, ignore_errors=True)


@contextmanager
def new_run(to: ImportTarget, source: Path) -> Iterator[RunWriter]:
    """A run to write; whoever fails, or is interrupted, before it has ended leaves none."""
    writer = RunWriter(to, source)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise

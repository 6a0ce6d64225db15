"""The position of one sink in the journal of a run, as a state machine."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Literal, TypeAlias

import msgspec

from metricbus._common.records import Status
from metricbus._delivery.batch_reader import Batch, BatchReader, span_of
from metricbus._delivery.lease import Lease
from metricbus._delivery.offsets_file import (
    DeliveryProgress,
    find_conflict,
    load_progress,
    save_progress,
)
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import NO_LINE, Position, Span
from metricbus.errors import ConfigError

State: TypeAlias = Literal["released", "acquired", "ready", "read", "intended", "written", "closed"]


class DeliveryCursor:
    """What a sink has received, and how much of that is durable.

    The consumer calls the sink, and after each call the method that is named for the transition.
    At most one batch is in flight. Batches that were flushed wait, in order, until the backend has
    acknowledged them, which means that they survive the death of all processes. Only acknowledged
    progress is saved, and everything after it is delivered again after a crash.

    | state              | transition   | next     | meaning, and what is saved                  |
    |--------------------|--------------|----------|---------------------------------------------|
    | released           | acquire      | acquired | has the lease; loads the offsets file       |
    | acquired           | opened       | ready    | the sink is open with `progress.state`      |
    | ready              | read         | read     | a batch is in memory; if there are no new   |
    |                    |              | ready    | rows, there is none                         |
    | read               | intend       | intended | may be written; saves the order (*)         |
    | intended           | written      | written  | the sink has accepted the batch             |
    | intended           | refused      | ready    | half of the batch is read again, or a       |
    |                    |              |          | single row, which then counts as rejected   |
    | read, intended     | roll_back    | ready    | the batch is read again                     |
    | written            | flushed      | ready    | the batch counts                            |
    | ready              | acknowledged | ready    | saves the progress that is acknowledged     |
    | ready              | close        | closed   | saves that everything is acknowledged       |
    | acquired, ready,   | lost         | acquired | the sink must be opened again, and receives |
    | intended, written  |              |          | what is not acknowledged again              |
    | any                | release      | released | has no lease; unsaved progress is discarded |

    (*) For sinks that recognize rows by their position, which must receive the same rows in the
    same order after a crash. Saves the order of the rows after the acknowledged ones, unless they
    are lines of a single segment, and which of them were rejected: they are never written.

    If a method raises, the state has not changed. `acquire` raises `LeaseHeld`, and `intend`,
    `flushed` and `close` raise `LeaseLost`, if another process has the lease. Methods that read or
    save raise `OSError` or `JournalError`. A transition that is not in the table raises
    `RuntimeError`: it is a programming error.
    """

    batch: Batch
    """The batch in flight, from `read` to `flushed`."""

    def __init__(self, folder: RunFolder, spec: SinkSpec, *, yields_gil: bool = False) -> None:
        self.state: State = "released"
        self.lease = Lease(folder.offsets / spec.destination)
        self._folder = folder
        self._spec = spec
        self._path = folder.offsets / f"{spec.key}.json"
        self._yields_gil = yields_gil
        self._keeps_order = spec.sink.dedup == "position"
        self._load()

    def _load(self) -> None:
        spec = self._spec
        initial = DeliveryProgress(
            sink=spec.canonical, destination=spec.destination, selection=spec.selection
        )
        self.progress = self._acknowledged = load_progress(self._path, initial)
        # Each entry: the number of records written since the sink was opened, and the progress.
        self._unacknowledged: list[tuple[int, DeliveryProgress]] = []
        self._record_count = 0  # written since the sink was opened
        # The order in which the rows after the acknowledged ones were read, if it must be kept.
        self._order = self.progress.replay
        self._rejected_rows = self.progress.rejected_rows
        self._limit = spec.options.batch_size
        self._restart_reader()

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise RuntimeError(
                f"the delivery cursor of {self._spec.name} is {self.state}; this transition "
                f"requires that it is {' or '.join(states)}"
            )

    def acquire(self) -> None:
        """Acquire the lease and load the progress, which another process may have saved.

        Raises `ConfigError` if a sink with other options has written other rows to the same
        destination.
        """
        self._require("released")
        number = self.lease.acquire(above=self.progress.lease)
        try:
            self._load()
            # A sink that recognizes rows by their position cannot distinguish other rows.
            if self._spec.sink.dedup != "content" and (
                other := find_conflict(self._folder.offsets, self.progress)
            ):
                raise ConfigError(
                    f"{other} has already written a different selection of rows to the same "
                    f"location; give {self._spec.name} another location, such as "
                    f"{self._spec.kind}:elsewhere"
                )
        except BaseException:
            self.lease.release()
            raise
        self.progress = self._acknowledged = msgspec.structs.replace(self.progress, lease=number)
        self.state = "acquired"

    def release(self) -> None:
        """Release the lease, if it is held."""
        self.lease.release()
        self.state = "released"

    def opened(self) -> None:
        """Note that the sink has been opened with the state in `progress`."""
        self._require("acquired")
        self._record_count = 0
        self.state = "ready"

    def read(self, *, ended: bool) -> Batch | None:
        """Read the next batch; return None if there is nothing new.

        Once the run has `ended`, the partial rows of processes that died come last.
        """
        self._require("ready")
        try:
            batch = self.reader.read(self.progress, self._limit, self._rejected_rows, ended=ended)
        except BaseException:
            self._restart_reader()
            raise
        if batch is not None:
            self._note_order(batch)
            self.batch = batch
            self.state = "read"
        return batch

    def _note_order(self, batch: Batch) -> None:
        """Append the batch to the order, unless it repeats a part of it."""
        if not self._keeps_order:
            return
        for _, rows in groupby(batch.rows, key=lambda row: (row.segment, row.line <= NO_LINE)):
            *_, last = rows
            span = span_of(last)
            if any(_covers(known, span) for known in self._order):
                continue
            is_continued = self._order and _covers(span, self._order[-1])
            self._order = [*(self._order[:-1] if is_continued else self._order), span]

    def intend(self) -> None:
        """Prepare to write the batch: check the lease, and save what a repetition depends on."""
        self._require("read")
        self.lease.check()
        sources = {(span.segment, span.partial) for span in self._order}
        sources |= {(segment, False) for segment in self.progress.positions}
        if self._keeps_order and (len(sources) > 1 or self._rejected_rows):
            self._save(self._acknowledged)
        self.state = "intended"

    def written(self) -> None:
        """Note that the sink has accepted the batch."""
        self._require("intended")
        self._record_count += len(self.batch.records)
        self.state = "written"

    def refused(self) -> None:
        """Read half of the batch again, or a batch of a single row as rejected."""
        self._require("intended")
        if len(self.batch.rows) == 1:
            self._rejected_rows = [*self._rejected_rows, span_of(self.batch.rows[0])]
        self._limit = max(1, len(self.batch.rows) // 2)
        self.roll_back()

    def roll_back(self) -> None:
        """Read the batch again."""
        self._require("read", "intended")
        self._restart_reader()
        self.state = "ready"

    def flushed(self, state: Mapping[str, Any]) -> None:
        """Count the batch; `state` is what the sink needs to resume after it."""
        self._require("written")
        self.lease.check()
        self.progress = msgspec.structs.replace(self.batch.after, state=dict(state))
        self._unacknowledged.append((self._record_count, self.progress))
        self._limit = min(self._limit * 2, self._spec.options.batch_size)
        self.state = "ready"

    def acknowledged(self, records: int | None = None) -> None:
        """Save the progress up to this number of records since the sink was opened; None means all.

        If this raises `OSError`, the next call saves the progress.
        """
        self._require("ready")
        count = sum(records is None or number <= records for number, _ in self._unacknowledged)
        if count:
            self._save(self._unacknowledged[count - 1][1])
            del self._unacknowledged[:count]

    @property
    def is_acknowledged(self) -> bool:
        """Whether everything that counts is acknowledged."""
        return not self._unacknowledged

    def lost(self) -> None:
        """Return to the acknowledged progress. The sink must be opened again."""
        self._require("acquired", "ready", "intended", "written")
        self._unacknowledged.clear()
        self.progress = self._acknowledged
        self._restart_reader()
        self.state = "acquired"

    def close(self, status: Status, where: str, command: str) -> None:
        """Save that the sink was closed with this status, with everything acknowledged."""
        self._require("ready")
        self.lease.check()
        self._save(
            msgspec.structs.replace(self.progress, closed=status, where=where, command=command)
        )
        self.progress = self._acknowledged
        self._unacknowledged.clear()
        self.state = "closed"

    def is_complete(self, status: Status | None) -> bool:
        """Check whether the sink has everything and was closed with this status."""
        if self.progress.closed != status or self.reader.has_more():
            return False
        return not self.reader.partial_rows(self.progress)

    def _restart_reader(self) -> None:
        """Read from after `progress`, in the order in which rows were read before."""
        ahead = _after(self.progress, self._order)
        self.reader = BatchReader(
            self._folder.journal, self._spec, self.progress, ahead, yields_gil=self._yields_gil
        )

    def _save(self, progress: DeliveryProgress) -> None:
        """Save this progress as acknowledged."""
        replay, rejected_rows = (
            _after(progress, spans) for spans in (self._order, self._rejected_rows)
        )
        progress = msgspec.structs.replace(progress, replay=replay, rejected_rows=rejected_rows)
        save_progress(self._path, progress)
        self._acknowledged, self._order, self._rejected_rows = progress, replay, rejected_rows


def _covers(span: Span, other: Span) -> bool:
    """Check whether `span` contains all rows of `other` that were not processed yet."""
    is_same = (span.segment, span.partial) == (other.segment, other.partial)
    return is_same and span.line >= other.line


def _after(progress: DeliveryProgress, spans: list[Span]) -> list[Span]:
    """Return the spans that contain rows after the progress."""

    def processed(span: Span) -> int:
        if span.partial:
            return progress.partial.get(span.segment, 0)
        return progress.positions.get(span.segment, Position()).line

    return [span for span in spans if span.line > processed(span)]

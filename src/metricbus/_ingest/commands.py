"""Commands to the collector, which executes each in order with the calls around it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metricbus._aggregate.cross_rank import MergedValue, Partials
from metricbus._aggregate.rules import Definition
from metricbus._common.media_records import Medium
from metricbus._common.records import Epoch, Number, Rewind, RunUpdate, Status
from metricbus._ingest.queue import Command


class Flush(Command):
    """Sync the journal, after everything queued before has been written to it."""


class SavePartials(Flush):
    """Write the partial aggregates to the journal, then flush."""


@dataclass(eq=False)
class Define(Command):
    """Add a definition for all later calls. Other definitions override a `default` one."""

    definition: Definition
    default: bool


class BeginEpoch(Command):
    """Write that an epoch begins."""

    def __init__(self, step: int, epoch: int) -> None:
        super().__init__()
        self.record = Epoch(step=step, epoch=epoch, time=time.time_ns())


class EndEpoch(Command):
    """Emit the reductions of the epoch, and write its duration in `seconds` if there is one.

    `results` has the values of the reductions once the command is `done`.
    """

    def __init__(self, step: int, epoch: int, seconds: float | None) -> None:
        super().__init__()
        self.results: dict[str, Number] = {}
        self.record = Epoch(step=step, epoch=epoch, time=time.time_ns(), seconds=seconds)


@dataclass(eq=False)
class ApplyRewind(Command):
    """Emit all partial aggregates, write `record` if there is one, and restore `state`."""

    record: Rewind | None
    state: Sequence[Any] = ()


@dataclass(eq=False)
class CollectPartials(Command):
    """Remove the partial aggregates that are to be merged across ranks, and set `partials` to them.

    Either the collector claims the command to execute it, or the caller claims it to withdraw it.
    """

    partials: Partials = field(default_factory=dict, init=False)
    _claim: list[bool] = field(default_factory=lambda: [True], init=False)

    def claim(self) -> bool:
        """Return True to the first caller only."""
        try:
            return self._claim.pop()  # atomic
        except IndexError:
            return False


@dataclass(eq=False)
class RestorePartials(Command):
    """Put collected partial aggregates back, because the ranks could not be synchronized."""

    partials: Partials


@dataclass(eq=False)
class PublishMerged(Command):
    """Emit the values merged across ranks, if this rank `is_writer`."""

    results: Sequence[MergedValue]
    epoch: int
    ends_epoch: bool
    is_writer: bool


@dataclass(eq=False)
class Snapshot(Command):
    """Set `state` to the partial aggregates, and `position` to the segment and its next line."""

    state: list[Any] = field(default_factory=list, init=False)
    position: tuple[str, int] = field(default=("", 0), init=False)


@dataclass(eq=False)
class UpdateRun(Command):
    """Write an update of the run to the journal, then save run.json."""

    record: RunUpdate


class Append(Command):
    """Write the records of encoded media to the journal, in one write."""

    def __init__(self, records: list[Medium]) -> None:
        super().__init__()
        self.records = records
        self.values = len(records)


@dataclass(eq=False)
class Stop(Command):
    """Write what is left, close the segment with this status, and end the collector's thread."""

    status: Status

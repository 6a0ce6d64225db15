"""What the collector is asked to do, each in its turn among the values that were logged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from metricbus._aggregate.cross_rank import Merged, Parts
from metricbus._aggregate.rules import Definition
from metricbus._common.records import Epoch, Medium, Number, Rewind, Status
from metricbus._ingest.queue import Control


class Flush(Control):
    """Asks to be told when everything before it is in the journal."""


class SavePartials(Flush):
    """Also asks for what is open to be written down."""


class Define(Control):
    """A definition for all calls after it; a default one gives way to all others."""

    def __init__(self, definition: Definition, *, default: bool) -> None:
        super().__init__()
        self.definition = definition
        self.default = default


class BeginEpoch(Control):
    """An epoch begins here."""

    def __init__(self, step: int, epoch: int) -> None:
        super().__init__()
        self.record = Epoch(step=step, epoch=epoch, time=time.time_ns())


class EndEpoch(Control):
    """The epoch's reductions are to be emitted; `results` has them once it is `done`."""

    def __init__(self, step: int, epoch: int, seconds: float | None) -> None:
        super().__init__()
        self.results: dict[str, Number] = {}
        now = time.time_ns()
        self.record = Epoch(step=step, epoch=epoch, time=now, seconds=seconds)


class ApplyRewind(Control):
    """What was logged beyond a step is superseded, if there is such a record; what is open goes out
    before. From then on the open reductions are what they were when `state` was saved.
    """

    def __init__(self, record: Rewind | None, state: Sequence[Any] = ()) -> None:
        super().__init__()
        self.record = record
        self.state = state


class CollectPartials(Control):
    """Asks for what waits for the ranks to meet, which is open no more. `parts` has it once it is
    `done`. Either the collector claims it, to obey, or who asks, to withdraw it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: Parts = {}
        self._claim = [True]

    def claim(self) -> bool:
        """Whether it is the caller's now; true once."""
        try:
            return self._claim.pop()  # atomic
        except IndexError:
            return False


class RestorePartials(Control):
    """The ranks did not meet: what was taken is open again."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts


class PublishMerged(Control):
    """What the ranks gave together, at the end of an epoch if it has `ended`; it is to be emitted
    `here`, or by another rank.
    """

    def __init__(self, results: Sequence[Merged], epoch: int, *, ended: bool, here: bool) -> None:
        super().__init__()
        self.here = here
        self.results = results
        self.epoch = epoch
        self.ended = ended


class Snapshot(Control):
    """Asks for the open reductions, as plain values, in `state`; and for the place in the journal,
    the segment and the line that comes next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state: list[Any] = []
        self.place = ("", 0)


class Append(Control):
    """Media whose files are written: they come into the journal, all of them in one write."""

    def __init__(self, records: list[Medium]) -> None:
        super().__init__()
        self.records = records
        self.values = len(records)


class Stop(Control):
    """The last thing the collector does: it ends the segment with this status."""

    def __init__(self, status: Status) -> None:
        super().__init__()
        self.status = status

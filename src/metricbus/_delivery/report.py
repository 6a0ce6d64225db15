"""Exact counts of where the values are, in values: one name in one row is one value."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from metricbus._journal.segment_reader import Position
from metricbus.errors import MetricBusError


class SinkCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One sink's share of what the journal holds.

    `journalled + others == delivered + rejected + filtered + pending`, always. `error` is the last
    failure in words; that of an outage goes when the outage is over.
    `where` tells what was written to, and `command` opens it.
    """

    delivered: int = 0
    rejected: int = 0
    filtered: int = 0
    pending: int = 0
    error: str | None = None
    where: str = ""
    command: str = ""


class Tally(NamedTuple):
    """A sink's counts at one moment."""

    delivered: int = 0
    rejected: int = 0
    filtered: int = 0
    values: Mapping[str, int] = MappingProxyType({})
    positions: Mapping[str, Position] = MappingProxyType({})
    damaged: int = 0
    error: str | None = None
    where: str = ""
    command: str = ""

    def seen_of(self, segment: str) -> int:
        """Values of this segment that have been dealt with."""
        return self.values.get(segment, 0)

    def seen_elsewhere(self, segment: str) -> int:
        """Values of all other segments that have been dealt with."""
        return sum(self.values.values()) - self.seen_of(segment)

    def has_reached(self, target: Mapping[str, int]) -> bool:
        """Whether everything before these bytes of the segments has been dealt with."""
        return all(
            self.positions.get(segment, Position()).offset >= offset
            for segment, offset in target.items()
        )

    def counts(self, journalled: int) -> SinkCounts:
        """The counts for people, given how many values there are in all."""
        done = self.delivered + self.rejected + self.filtered
        return SinkCounts(
            delivered=self.delivered,
            rejected=self.rejected,
            filtered=self.filtered,
            pending=journalled - done,
            error=self.error,
            where=self.where,
            command=self.command,
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of everything that was logged so far.

    `logged + derived == journalled + reduced + dropped + waiting`, always. `reduced` values went
    into a reduction and are not in the journal themselves; `derived` ones are what reductions gave,
    and are. `dropped` ones met a full queue or a closed bus, `waiting` ones are not in the journal
    yet. `others` were journalled by processes that joined the run. `damaged` is the number of
    journal lines that could not be read.
    """

    journalled: int = 0
    reduced: int = 0
    derived: int = 0
    others: int = 0
    dropped: int = 0
    waiting: int = 0
    damaged: int = 0
    error: str | None = None
    sinks: dict[str, SinkCounts] = {}

    @property
    def logged(self) -> int:
        """Values that `log()` has accepted."""
        return self.journalled + self.reduced + self.dropped + self.waiting - self.derived

    @property
    def complete(self) -> bool:
        """Whether nothing was dropped, rejected or left behind, in the bus and in every sink."""
        return not (self.dropped or self.waiting) and not any(
            sink.rejected or sink.pending for sink in self.sinks.values()
        )

    def __str__(self) -> str:
        lines = [
            f"logged {self.logged:,}"
            + (f" + derived {self.derived:,}" if self.derived else "")
            + f" = journalled {self.journalled:,} + reduced {self.reduced:,}"
            f" + dropped {self.dropped:,} + waiting {self.waiting:,}"
            + (f"; by other processes {self.others:,}" if self.others else "")
            + (f" ({self.error})" if self.error else "")
        ]
        for name, sink in self.sinks.items():
            lines.append(
                f"{name}: delivered {sink.delivered:,}, rejected {sink.rejected:,}, "
                f"filtered {sink.filtered:,}, pending {sink.pending:,}"
                + (f" ({sink.error})" if sink.error else "")
            )
        return "\n".join(lines)


class DeliveryError(MetricBusError):
    """Raised by `flush()` and `close()` under `strict=True` when not everything was delivered.

    `report` has the counts and, per sink, the last error.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

"""Exact counts of values by outcome. One name in one row is one value; a medium is one value."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from metricbus._journal.segment_reader import Position
from metricbus.errors import MetricBusError


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """The values that one sink has processed, by outcome."""

    delivered: int = 0
    rejected: int = 0
    filtered: int = 0

    @property
    def processed(self) -> int:
        """The sum of all outcomes."""
        return self.delivered + self.rejected + self.filtered


class SinkCounts(Outcomes, frozen=True, kw_only=True):
    """What became of the values in the journal, for one sink.

    `delivered` values are in the backend, `rejected` ones were refused by it, `filtered` ones were
    excluded by the sink's options, and `pending` ones have not been processed yet. It always holds
    that `journalled + others == delivered + rejected + filtered + pending`, where `journalled` and
    `others` are those of the `Report`.

    `error` describes the last failure; the end of an outage clears it. `where` is the path or
    address of the data, and `command` the shell command that opens it.
    """

    pending: int = 0
    error: str | None = None
    where: str = ""
    command: str = ""


class Tally(Outcomes, frozen=True, kw_only=True, array_like=True):
    """The progress of a sink: everything before `positions` was processed.

    `values` has the number of processed values by segment. `damaged` is the number of journal lines
    that could not be read. `error`, `where` and `command` are those of `SinkCounts`.
    """

    values: dict[str, int] = {}
    positions: dict[str, Position] = {}
    damaged: int = 0
    error: str | None = None
    where: str = ""
    command: str = ""

    def processed_in(self, segment: str) -> int:
        """Return the number of processed values of this segment."""
        return self.values.get(segment, 0)

    def processed_elsewhere(self, segment: str) -> int:
        """Return the number of processed values of all other segments."""
        return sum(self.values.values()) - self.processed_in(segment)

    def has_reached(self, target: Mapping[str, int]) -> bool:
        """Check whether the sink has processed each segment up to the target offset in bytes."""
        return all(
            self.positions.get(segment, Position()).offset >= offset
            for segment, offset in target.items()
        )

    def counts(self, total: int) -> SinkCounts:
        """Return the public counts, given the total number of values in the journal."""
        return SinkCounts(
            delivered=self.delivered,
            rejected=self.rejected,
            filtered=self.filtered,
            pending=total - self.processed,
            error=self.error,
            where=self.where,
            command=self.command,
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of all values that were logged so far.

    It always holds that `logged + derived == journalled + reduced + dropped + waiting`, where
    `logged` is the number of values that `log()` has accepted.

    * `journalled`: values that this process has written to the journal.
    * `reduced`: values that were added to a reduction and not written to the journal individually.
    * `derived`: values that reductions have produced.
    * `others`: values that other processes of the run have written to the journal.
    * `dropped`: values that were lost to a full queue or a closed bus, or could not be written.
    * `waiting`: values that are not in the journal yet.
    * `damaged`: journal lines that could not be read.
    * `error`: description of a failure to write the journal.
    * `sinks`: the counts of each sink, by its name.
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
        """Whether no value is missing in any sink: none dropped, rejected, waiting or pending."""
        return not (self.dropped or self.waiting) and not any(
            sink.rejected or sink.pending for sink in self.sinks.values()
        )

    def __repr__(self) -> str:
        return f"<Report: {str(self).replace(chr(10), '; ')}>"

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
    """Raised with `strict=True` by `flush()` and `close()` if not every value was delivered.

    `report` has the counts and the last error of each sink.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

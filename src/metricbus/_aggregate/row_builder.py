"""Calls become rows.

Neighbours of the same step and epoch join into one row until a name comes again. A row has the time
of its first call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from metricbus._aggregate.aggregator import NO_MARKS, Emission, Marks
from metricbus._common.records import Call, Number, Scalars


def join_calls(calls: Iterable[Call]) -> Iterator[Scalars]:
    """Rows from calls that no definition speaks of."""
    values: dict[str, Number] = {}
    row_step = row_epoch = row_time = -1
    for what, value, step, epoch, time_ns in calls:
        together = step == row_step and epoch == row_epoch
        if isinstance(what, str):
            if together and what not in values:
                values[what] = value
                continue
            more = {what: value}
        else:
            if together and values.keys().isdisjoint(what):
                values.update(what)
                continue
            more = what
        if values:
            yield Scalars(step=row_step, epoch=row_epoch, time=row_time, values=values)
        values, row_step, row_epoch, row_time = more, step, epoch, time_ns
    if values:
        yield Scalars(step=row_step, epoch=row_epoch, time=row_time, values=values)


def join_emissions(emissions: Iterable[Emission], *, partial: bool = False) -> Iterator[Scalars]:
    """Rows from what the definitions gave; only emissions with the same marks share rows."""
    apart: dict[Marks, list[Call]] = {}
    for name, value, (step, epoch, time_ns), marks in emissions:
        apart.setdefault(marks, []).append((name, value, step, epoch, time_ns))
    for marks, calls in apart.items():
        for row in join_calls(calls):
            if marks == NO_MARKS and not partial:
                yield row
            else:
                axis, at, sinks = marks
                yield Scalars(
                    step=row.step,
                    epoch=row.epoch,
                    time=row.time,
                    values=row.values,
                    axis=axis,
                    at=at,
                    sinks=sinks,
                    partial=partial,
                )

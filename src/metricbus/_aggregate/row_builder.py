"""Groups values into rows.

Adjacent values share a row if they have the same step, epoch and routing, until a name is repeated.
The time of a row is that of its first value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from metricbus._aggregate.partial_aggregate import LogTime
from metricbus._common.records import Call, Number, ScalarRow


class Routing(NamedTuple):
    """The fields of a row, besides its position, that depend on the definition of a value."""

    axis: str = ""
    at: Number | None = None
    sinks: tuple[str, ...] = ()
    epoch_result: bool = False


DEFAULT_ROUTING = Routing()


class Emission(NamedTuple):
    """One value for the journal."""

    name: str
    value: Number
    time: LogTime
    routing: Routing


def join_calls(calls: Iterable[Call]) -> Iterator[ScalarRow]:
    """Build rows from calls to which no definition applies."""
    values: dict[str, Number] = {}
    row_step = row_epoch = row_time = -1
    for name_or_row, value, step, epoch, time_ns in calls:
        fits_row = step == row_step and epoch == row_epoch
        if isinstance(name_or_row, str):
            if fits_row and name_or_row not in values:
                values[name_or_row] = value
                continue
            new_values = {name_or_row: value}
        else:
            if fits_row and values.keys().isdisjoint(name_or_row):
                values.update(name_or_row)
                continue
            new_values = name_or_row
        if values:
            yield ScalarRow(step=row_step, epoch=row_epoch, time=row_time, values=values)
        values, row_step, row_epoch, row_time = new_values, step, epoch, time_ns
    if values:
        yield ScalarRow(step=row_step, epoch=row_epoch, time=row_time, values=values)


def join_emissions(emissions: Iterable[Emission], *, partial: bool = False) -> Iterator[ScalarRow]:
    """Build rows from emissions. Mark them as `partial` if their reductions are in progress."""
    by_routing: dict[Routing, list[Call]] = {}
    for name, value, (step, epoch, time_ns), routing in emissions:
        by_routing.setdefault(routing, []).append((name, value, step, epoch, time_ns))
    for routing, calls in by_routing.items():
        for row in join_calls(calls):
            if routing == DEFAULT_ROUTING and not partial:
                yield row
            else:
                yield msgspec.structs.replace(row, **routing._asdict(), partial=partial)

"""What ranks have each reduced, put together.

A part is what one rank's open reduction has seen, as plain values. Parts carry sums and weights and
not results, so that a mean over ranks is the mean over all values, whatever each rank had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from metricbus._aggregate.reductions import Reduction, reduction_factory
from metricbus.errors import RankError

Parts: TypeAlias = Mapping[str, Mapping[str, Any]]
"""By the name under which values were logged. See `Aggregator.take_across`."""


class Merged(NamedTuple):
    """What all ranks together gave for one name: `step` and `time` are of the last value of all."""

    name: str
    emitted_as: str
    value: Any  # a number, or one that is still on its way from a device
    step: int
    time: int


def merge(parts_by_rank: Mapping[int, Parts]) -> list[Merged]:
    """Puts together what the ranks bring, each name by its reduction; some may lack a name.

    Raises `RankError` where ranks reduce a name in different ways.
    """
    names = sorted({name for parts in parts_by_rank.values() for name in parts})
    return [_merge_one(name, parts_by_rank) for name in names]


def _merge_one(name: str, parts_by_rank: Mapping[int, Parts]) -> Merged:
    found = {rank: parts[name] for rank, parts in parts_by_rank.items() if name in parts}
    first, one = next(iter(found.items()))
    for rank, part in found.items():
        if (part["reduce"], part["as"]) != (one["reduce"], one["as"]):
            raise RankError(
                f"rank {first} defines {name!r} with across_ranks={one['reduce']!r}, rank {rank} "
                f"with {part['reduce']!r}, or the one on steps and the other not; every rank makes "
                "the same definitions"
            )
    total = _merge_states(one["reduce"], [part["reduction"] for part in found.values()])
    step, time = max((part["place"][0], part["place"][2]) for part in found.values())
    return Merged(name, one["as"], total.result(), step, time)


def _merge_states(reduce: str, states: Sequence[Mapping[str, Any]]) -> Reduction:
    make = reduction_factory(reduce)
    total = make()
    for state in states:
        part = make()
        part.restore(state)
        total.merge(part)
    return total

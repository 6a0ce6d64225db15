"""Merges the partial aggregates of several ranks.

A rank contributes the state of its reduction, such as a sum and a weight, and not its result. The
mean across ranks is therefore the mean of all values, however they are distributed over the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from metricbus._aggregate.reductions import reduction_factory
from metricbus.errors import RankError

Partials: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Partial aggregates by logged name, as `Aggregator.collect_partials` returns them."""


class MergedValue(NamedTuple):
    """The result of one name across ranks.

    `step` and `time` are those of the last value on any rank. `value` is a number or a
    `DeviceValue`.
    """

    name: str
    emitted_as: str
    value: Any
    step: int
    time: int


def merge_partials(partials_by_rank: Mapping[int, Partials]) -> list[MergedValue]:
    """Merge the partial aggregates of all ranks, name by name. A rank may lack a name.

    Raises `RankError` if ranks define a name differently.
    """
    names = sorted({name for partials in partials_by_rank.values() for name in partials})
    return [_merge_name(name, partials_by_rank) for name in names]


def _merge_name(name: str, partials_by_rank: Mapping[int, Partials]) -> MergedValue:
    states = {rank: found[name] for rank, found in partials_by_rank.items() if name in found}
    first_rank, first = next(iter(states.items()))
    factory = reduction_factory(first["reduce"])
    total = factory()
    for rank, state in states.items():
        if (state["reduce"], state["as"]) != (first["reduce"], first["as"]):
            raise RankError(
                f"rank {first_rank} defines {name!r} with across_ranks={first['reduce']!r} (named "
                f"{first['as']!r}), rank {rank} with {state['reduce']!r} (named {state['as']!r}); "
                "make the same definitions on every rank"
            )
        part = factory()
        part.restore(state["reduction"])
        total.merge(part)
    step, time = max((state["place"][0], state["place"][2]) for state in states.values())
    return MergedValue(name, first["as"], total.result(), step, time)

"""Rules by name: how often a value is emitted, how it is reduced, on which axis, to which sinks.

A definition speaks of all names that its glob matches. Where several match a name, a later one wins
in what it says, and what it leaves open stays as an earlier one said it. The result for one name is
its `Rule`; names that nothing is said of have none, and each of their values is emitted as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import get_args

import msgspec

from metricbus._aggregate.reductions import AcrossRanks, Reducer, reduction_factory
from metricbus._common.validation import check_name
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus.definitions")


class Definition(msgspec.Struct, frozen=True):
    """What `define` was told; None where it was told nothing."""

    pattern: str
    every: int | None = None
    reduce: Reducer | None = None
    on_step: bool | None = None
    on_epoch: bool | None = None
    sinks: tuple[str, ...] | None = None
    axis: str | None = None
    across_ranks: str | None = None
    progress: bool | None = None

    @property
    def display_only(self) -> bool:
        """Whether it speaks of progress bars alone, and so of nothing that is written."""
        return self == Definition(self.pattern, progress=self.progress)


class Rule(msgspec.Struct, frozen=True):
    """What holds for one name, everything decided: by what it is reduced where, if it is."""

    every: int
    passthrough: bool  # each value is emitted, unreduced
    contradictory: bool  # it would never be emitted, and so it is on steps
    on_step: Reducer | None
    on_epoch: Reducer | None
    epoch_name: str
    sinks: tuple[str, ...]
    axis: str
    across_ranks: bool  # what is reduced over the epoch waits until the ranks meet
    progress: bool  # its newest value stands beside progress bars

    @property
    def only_on_epoch(self) -> bool:
        """Whether nothing is emitted on steps."""
        return self.on_step is None and not self.passthrough


def checked(definition: Definition) -> Definition:
    """The definition itself, if it makes sense; else `ConfigError`."""
    check_name(definition.pattern)
    what = f"define({definition.pattern!r})"
    every = definition.every
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise ConfigError(f"{what}: every= must be an int from 1 on, not {every!r:.40}")
    if definition.reduce is not None:
        try:
            reduction_factory(definition.reduce)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from None
    for name in ("on_step", "on_epoch", "progress"):
        if not isinstance(getattr(definition, name), bool | None):
            given = getattr(definition, name)
            raise ConfigError(f"{what}: {name}= takes True or False, not {given!r:.40}")
    if definition.sinks == ():
        raise ConfigError(f"{what}: sinks=[] would keep the name from all sinks; name some")
    if definition.on_step is False and definition.on_epoch is False:
        raise ConfigError(f"{what}: on_step=False and on_epoch=False would never emit anything")
    if definition.on_step is False and every is not None:
        raise ConfigError(
            f"{what}: every={every} counts values on steps, and on_step=False emits none; "
            "leave one of them out"
        )
    across = definition.across_ranks
    if across is not None and across not in (mergeable := get_args(AcrossRanks)):
        raise ConfigError(
            f"{what}: across_ranks= takes one of {', '.join(mergeable)}, not {across!r:.40}: the "
            "others cannot be put together from what each rank has"
        )
    if across is not None and definition.on_epoch is False:
        raise ConfigError(
            f"{what}: across_ranks= reduces where the ranks meet, at the end of an epoch for one; "
            "leave on_epoch=False out"
        )
    if definition.axis is not None:
        check_name(definition.axis)
    for sink in definition.sinks or ():
        check_name(sink)
    return definition


class Definitions:
    """All definitions of a run, and the rule for each name."""

    def __init__(self, *, tell: bool = False) -> None:
        """With `tell`, warns of what does not go together, when a name comes that it concerns."""
        self.version = 0  # grows with each definition
        self._all: list[Definition] = []
        self._rules: dict[str, Rule | None] = {}
        self._tell = tell
        self._seen: set[str] = set()
        self._epoch_names: dict[str, str] = {}  # and whose epoch each is

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def any_across_ranks(self) -> bool:
        """Whether any of them has the ranks meet."""
        return any(definition.across_ranks for definition in self._all)

    def __iter__(self) -> Iterator[Definition]:
        """In the order in which they win, the weakest first."""
        return iter(self._all)

    def add(self, definition: Definition, *, default: bool = False) -> None:
        """Adds a definition, as the latest; or, as a default, before all that were ever made."""
        self._all.insert(0 if default else len(self._all), definition)
        self.version += 1
        self._rules.clear()

    def rule(self, name: str) -> Rule | None:
        """The rule for a name; matched once, and then looked up."""
        try:
            return self._rules[name]
        except KeyError:
            rule = self._rules[name] = self._decide(name)
            if self._tell and name not in self._seen:
                self._seen.add(name)
                self._tell_of(name, rule)
            return rule

    def _tell_of(self, name: str, rule: Rule | None) -> None:
        """Of a name that has just come for the first time."""
        if rule is not None and rule.contradictory:
            _log.warning(
                "the definitions of %r say on_step=False and no on_epoch=True, which would emit "
                "nothing: it is emitted on steps",
                name,
            )
        if rule is not None and rule.on_epoch is not None and rule.epoch_name != name:
            self._epoch_names[rule.epoch_name] = name
            if rule.epoch_name in self._seen:
                self._tell_mixed(rule.epoch_name)
        if name in self._epoch_names:
            self._tell_mixed(name)

    def _tell_mixed(self, name: str) -> None:
        _log.warning(
            "%r is logged, and is also what the epoch of %r is called: both are in one series",
            name,
            self._epoch_names[name],
        )

    def _decide(self, name: str) -> Rule | None:
        matching = [one for one in self._all if fnmatchcase(name, one.pattern)]
        if not matching:
            return None
        said = Definition("")
        for definition in matching:
            told = {
                field: value
                for field in Definition.__struct_fields__
                if (value := getattr(definition, field)) is not None
            }
            if told.get("every") is not None:
                told.setdefault("on_step", True)
            said = msgspec.structs.replace(said, **told)
        across = said.across_ranks
        on_epoch = bool(said.on_epoch) or across is not None
        on_step = said.on_step is not False or not on_epoch  # two that contradict: never nothing
        on_step = on_step and not (across and said.on_step is None)
        every = said.every or 1
        reduction = reduction_factory(said.reduce or "last")()
        alone_is_itself = reduction.leaves_one_value or (
            said.every is None and reduction.needs_several
        )
        passthrough = on_step and every == 1 and alone_is_itself
        return Rule(
            every=every,
            passthrough=passthrough,
            contradictory=on_step and said.on_step is False,
            on_step=(said.reduce or "last") if on_step and not passthrough else None,
            on_epoch=(across or said.reduce or "mean") if on_epoch else None,
            epoch_name=f"{name}_epoch" if on_step else name,
            sinks=said.sinks or (),
            axis=said.axis or "",
            across_ranks=across is not None,
            progress=bool(said.progress),
        )

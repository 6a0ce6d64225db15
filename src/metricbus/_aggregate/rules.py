"""Resolves definitions into one rule per name: windows, reductions, axis and sinks.

A definition applies to all names that its glob matches. Later definitions override earlier ones,
field by field. A name that no definition matches has no rule, and its values are emitted unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import get_args

import msgspec

from metricbus._aggregate.reductions import AcrossRanks, Reducer, reduction_factory
from metricbus._common.records import Best
from metricbus._common.validation import check_name
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus.definitions")

BUILT_IN_AXES = ("step", "epoch")
"""The axes that every value has; any other axis is a series."""


class Definition(msgspec.Struct, frozen=True):
    """The arguments of one `define()` call; None for those that were left out."""

    pattern: str
    every: int | None = None
    reduce: Reducer | None = None
    on_step: bool | None = None
    on_epoch: bool | None = None
    sinks: tuple[str, ...] | None = None
    axis: str | None = None
    across_ranks: str | None = None
    progress: bool | None = None
    best: Best | None = None

    @property
    def display_only(self) -> bool:
        """Whether it affects progress bars only, and nothing that is written."""
        return self == Definition(self.pattern, progress=self.progress)


class Rule(msgspec.Struct, frozen=True):
    """All definitions of one name combined, with every default filled in.

    `on_step` and `on_epoch` are the reductions of windows and epochs, None where there are none.
    With `passthrough`, each value is emitted unreduced. `is_contradictory` definitions would emit
    nothing; their values are emitted on steps. With `across_ranks`, the reduction of the epoch is
    pending until the ranks synchronize.
    """

    every: int
    passthrough: bool
    is_contradictory: bool
    on_step: Reducer | None
    on_epoch: Reducer | None
    epoch_name: str
    sinks: tuple[str, ...]
    axis: str
    across_ranks: bool
    progress: bool

    @property
    def is_epoch_only(self) -> bool:
        """Whether nothing is emitted on steps."""
        return self.on_step is None and not self.passthrough


def check_definition(definition: Definition) -> None:
    """Raise `ConfigError` if the definition is invalid or contradicts itself."""
    check_name(definition.pattern)
    call = f"define({definition.pattern!r})"
    every = definition.every
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise ConfigError(f"{call}: every= must be a positive int, not {every!r:.40}")
    if definition.reduce is not None:
        try:
            reduction_factory(definition.reduce)
        except ConfigError as error:
            raise ConfigError(f"{call}: {error}") from None
    for name in ("on_step", "on_epoch", "progress"):
        value = getattr(definition, name)
        if not isinstance(value, bool | None):
            raise ConfigError(f"{call}: {name}= must be True or False, not {value!r:.40}")
    if definition.sinks == ():
        raise ConfigError(f"{call}: sinks=[] would send the values to no sink; name at least one")
    if definition.on_step is False and definition.on_epoch is False:
        raise ConfigError(f"{call}: on_step=False and on_epoch=False would never emit anything")
    if definition.on_step is False and every is not None:
        raise ConfigError(
            f"{call}: every={every} emits values on steps, which on_step=False turns off; "
            "leave one of them out"
        )
    if definition.best not in (None, *get_args(Best)):
        raise ConfigError(f'{call}: best= must be "max" or "min", not {definition.best!r:.40}')
    across = definition.across_ranks
    if across is not None and across not in (mergeable := get_args(AcrossRanks)):
        raise ConfigError(
            f"{call}: across_ranks= must be one of {', '.join(mergeable)}, not {across!r:.40}; "
            "other reductions cannot be merged across ranks"
        )
    if across is not None and definition.on_epoch is False:
        raise ConfigError(
            f"{call}: across_ranks= reduces over an epoch, which on_epoch=False turns off; leave "
            "on_epoch=False out"
        )
    if definition.axis is not None:
        check_name(definition.axis)
    for sink in definition.sinks or ():
        check_name(sink)


class Definitions:
    """All definitions of a run, and the rule of each name. Each definition adds 1 to `version`.

    `keeps_best` says whether any definition has `best=`.
    """

    def __init__(self, *, warn: bool = False) -> None:
        """With `warn`, log a warning when a name with conflicting definitions is first used."""
        self.version = 0
        self.keeps_best = False
        self._definitions: list[Definition] = []
        self._rules: dict[str, Rule | None] = {}
        self._best: dict[str, Best | None] = {}
        self._warn = warn
        self._seen: set[str] = set()
        self._logged_by_epoch_name: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._definitions)

    def __iter__(self) -> Iterator[Definition]:
        """Iterate in the order of precedence, lowest first."""
        return iter(self._definitions)

    @property
    def merges_across_ranks(self) -> bool:
        """Whether any definition reduces across ranks."""
        return any(definition.across_ranks for definition in self._definitions)

    def add(self, definition: Definition, *, default: bool = False) -> None:
        """Add a definition with the highest precedence, or the lowest if it is a `default`."""
        self._definitions.insert(0 if default else len(self._definitions), definition)
        self.version += 1
        self.keeps_best |= definition.best is not None
        self._rules.clear()
        self._best.clear()

    def rule(self, name: str) -> Rule | None:
        """Return the rule of a name, None if no definition matches it. The result is cached."""
        try:
            return self._rules[name]
        except KeyError:
            rule = self._rules[name] = self._resolve(name)
            if self._warn and name not in self._seen:
                self._seen.add(name)
                self._warn_conflicts(name, rule)
            return rule

    def best(self, name: str) -> Best | None:
        """Return which value under an emitted name is the best; None if it is not kept."""
        if name not in self._best:
            given = [one.best for one in self if one.best and fnmatchcase(name, one.pattern)]
            self._best[name] = given[-1] if given else None
        return self._best[name]

    def _warn_conflicts(self, name: str, rule: Rule | None) -> None:
        if rule is not None and rule.is_contradictory:
            _log.warning(
                "the definitions of %r combine to on_step=False and no on_epoch=True, which would "
                "emit nothing; its values are emitted on steps",
                name,
            )
        if rule is not None and rule.on_epoch is not None and rule.epoch_name != name:
            self._logged_by_epoch_name[rule.epoch_name] = name
            if rule.epoch_name in self._seen:
                self._warn_shared_series(rule.epoch_name)
        if name in self._logged_by_epoch_name:
            self._warn_shared_series(name)

    def _warn_shared_series(self, name: str) -> None:
        message = "%r is logged and is also the epoch name of %r; both are written to one series"
        _log.warning(message, name, self._logged_by_epoch_name[name])

    def _resolve(self, name: str) -> Rule | None:
        matching = [one for one in self._definitions if fnmatchcase(name, one.pattern)]
        if not matching:
            return None
        combined = Definition("")
        for definition in matching:
            given = {
                field: value
                for field in Definition.__struct_fields__
                if (value := getattr(definition, field)) is not None
            }
            if "every" in given:
                given.setdefault("on_step", True)
            combined = msgspec.structs.replace(combined, **given)
        across = combined.across_ranks
        on_epoch = bool(combined.on_epoch) or across is not None
        # Definitions that together turn off both are contradictory, and values go on steps.
        on_step = combined.on_step is not False or not on_epoch
        on_step = on_step and not (across and combined.on_step is None)
        every = combined.every or 1
        reduction = reduction_factory(combined.reduce or "last")()
        keeps_single_values = reduction.is_identity_for_one or (
            combined.every is None and reduction.needs_multiple
        )
        passthrough = on_step and every == 1 and keeps_single_values
        return Rule(
            every=every,
            passthrough=passthrough,
            is_contradictory=on_step and combined.on_step is False,
            on_step=(combined.reduce or "last") if on_step and not passthrough else None,
            on_epoch=(across or combined.reduce or "mean") if on_epoch else None,
            epoch_name=f"{name}_epoch" if on_step else name,
            sinks=combined.sinks or (),
            axis="" if combined.axis in (None, "step") else combined.axis,
            across_ranks=across is not None,
            progress=bool(combined.progress),
        )

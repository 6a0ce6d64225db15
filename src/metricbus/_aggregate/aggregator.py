"""Applies the rules of `bus.define()` to the logged values.

The value of a name without a rule is emitted unchanged. With a rule, the value is added to a window
and to the reduction of the epoch. A full window is emitted at the step of its last value; the
reduction of the epoch is emitted when the epoch ends. Both are partial aggregates until then, and
can be saved, restored and merged across ranks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from metricbus._aggregate.cross_rank import MergedValue, Partials
from metricbus._aggregate.partial_aggregate import LogTime, Partial
from metricbus._aggregate.reductions import Reducer
from metricbus._aggregate.row_builder import DEFAULT_ROUTING, Emission, Routing
from metricbus._aggregate.rules import BUILT_IN_AXES, Definition, Definitions, Rule
from metricbus._common.media_records import Medium
from metricbus._common.records import Call, Number
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._common.validation import INT_MAX

_log = logging.getLogger("metricbus.definitions")


class Aggregator:
    """The partial aggregates of one process.

    `reduced` counts the values that were added to a reduction instead of being emitted, `derived`
    counts the results of reductions, and `newest` has the latest result by name. `changes`
    increases whenever a partial aggregate changes.
    """

    def __init__(self) -> None:
        self.definitions = Definitions(warn=True)
        self.reduced = 0
        self.derived = 0
        self.changes = 0
        self.newest: dict[str, Number] = {}
        self._windows: dict[str, Partial] = {}
        self._epochs: dict[str, Partial] = {}
        self._axes: dict[str, Number | None] = {}  # latest value of each axis
        self._throttled_log = ThrottledLogger(_log)

    def define(self, definition: Definition, default: bool) -> list[Emission]:
        """Add a definition. Return the windows of the names whose rule it changes."""
        rules = {name: self.definitions.rule(name) for name in self._windows}
        self.definitions.add(definition, default=default)
        if definition.axis and definition.axis not in BUILT_IN_AXES:
            self._axes.setdefault(definition.axis, None)
        return [
            emission
            for name, rule in rules.items()
            if rule is not None and rule != self.definitions.rule(name)
            for emission in self._emit_window(name, rule, discard=True)
        ]

    def missing_axes(self) -> list[str]:
        """Return the series that a definition names as an axis but that were never logged."""
        return [name for name, value in self._axes.items() if value is None]

    def add(self, calls: Sequence[Call]) -> Iterator[Emission]:
        """Add the values of calls; yield what they emit, in their order."""
        for name_or_row, value_or_weight, step, epoch, time_ns in calls:
            time = LogTime(step, epoch, time_ns)
            if isinstance(name_or_row, str):
                yield from self._add(name_or_row, value_or_weight, 1.0, time)
            else:
                # An axis applies to the whole mapping, also to names in front of it.
                for axis in self._axes.keys() & name_or_row.keys():
                    self._axes[axis] = name_or_row[axis]
                for name, value in name_or_row.items():
                    yield from self._add(name, value, value_or_weight, time)

    def _add(self, name: str, value: Number, weight: float, time: LogTime) -> Iterator[Emission]:
        if name in self._axes:
            self._axes[name] = value
        rule = self.definitions.rule(name)
        if rule is None:
            yield Emission(name, value, time, DEFAULT_ROUTING)
            return
        # A value of a later epoch ends the epoch if the training loop did not.
        if self._pending_epoch(name) < time.epoch and not rule.across_ranks:
            if name in self._windows:
                yield from self._emit_window(name, rule)
            if name in self._epochs:
                yield from self._emit_epoch(name, rule)
        if rule.on_epoch is not None:
            # The values of other rules are emitted on steps anyway.
            keep = not rule.passthrough and rule.on_step is None
            partial = _get_or_create(self._epochs, name, rule.on_epoch)
            partial.add(value, weight, time, keep=keep)
            self.changes += 1
        if rule.passthrough:
            yield Emission(name, value, time, self._routing(rule, time.epoch))
            return
        self.reduced += 1
        if rule.on_step is not None:
            window = _get_or_create(self._windows, name, rule.on_step)
            window.add(value, weight, time, keep=True)
            self.changes += 1
            if window.count >= rule.every:
                yield from self._emit_window(name, rule)

    def _pending_epoch(self, name: str) -> int:
        """Return the epoch of the partial aggregates of a name, `INT_MAX` if it has none."""
        partial = self._epochs.get(name) or self._windows.get(name)
        return partial.last.epoch if partial and partial.count else INT_MAX

    def route_medium(self, medium: Medium) -> Medium:
        """Return the medium with the axis and the sinks that its name's rule sets."""
        rule = self.definitions.rule(medium.name)
        if rule is None or not (rule.axis or rule.sinks):
            return medium
        axis, at, sinks, _ = self._routing(rule, medium.epoch)
        return msgspec.structs.replace(medium, axis=axis, at=at, sinks=sinks)

    def end_epoch(self, *, cross_rank: bool = False) -> tuple[list[Emission], dict[str, Number]]:
        """Emit all windows and the reductions of the epoch; return the latter also by name.

        Without `cross_rank`, reductions across ranks stay pending until the ranks synchronize.
        """
        emissions = [
            emission
            for name in list(self._windows)
            if (rule := self.definitions.rule(name)) is not None
            for emission in self._emit_window(name, rule)
        ]
        results: dict[str, Number] = {}
        for name in list(self._epochs):
            rule = self.definitions.rule(name)
            if rule is None or (rule.across_ranks and not cross_rank):
                continue
            emitted = self._emit_epoch(name, rule)
            results |= {one.name: one.value for one in emitted if one.routing.epoch_result}
            emissions += emitted
        return emissions, results

    def cross_rank_rules(self) -> dict[str, Rule]:
        """Return the rules of the partial aggregates that are to be merged across ranks."""
        rules = {name: self.definitions.rule(name) for name in self._epochs}
        return {name: rule for name, rule in rules.items() if rule and rule.across_ranks}

    def collect_partials(self) -> Partials:
        """Remove and return the partial aggregates that are to be merged across ranks."""
        collected: dict[str, Mapping[str, Any]] = {}
        for name, rule in self.cross_rank_rules().items():
            state = self._epochs.pop(name).state()
            collected[name] = state | {"reduce": rule.on_epoch, "as": rule.epoch_name}
            self.changes += 1
        return collected

    def restore_partials(self, partials: Partials) -> None:
        """Put collected partial aggregates back, merged with what was logged in the meantime."""
        for name, state in partials.items():
            partial = Partial(state["reduce"])
            partial.restore(state)
            later = self._epochs.get(name)
            if later is not None:
                partial.merge(later)
            self._epochs[name] = partial
            self.changes += 1

    def emit_merged(
        self, results: Sequence[MergedValue], epoch: int, *, ends_epoch: bool
    ) -> list[Emission]:
        """Return the emissions for merged results: those of the epoch if this `ends_epoch`."""
        emissions = []
        for name, emitted_as, value, step, time_ns in results:
            rule = self.definitions.rule(name)
            routing = DEFAULT_ROUTING if rule is None else self._routing(rule, epoch)
            routing = routing._replace(epoch_result=ends_epoch)
            emissions.append(Emission(emitted_as, value, LogTime(step, epoch, time_ns), routing))
            self.derived += 1
        return emissions

    def state(self) -> list[Any]:
        """Return all partial aggregates as lists, strings and numbers."""
        return [
            [kind, name, partial.state()]
            for kind, partials in (("window", self._windows), ("epoch", self._epochs))
            for name, partial in partials.items()
        ]

    def restore(self, state: Sequence[Any]) -> None:
        """Restore saved partial aggregates; skip, with a warning, those that no longer apply."""
        # The checkpoint supersedes all results so far.
        self.newest.clear()
        for kind, name, saved in state:
            rule = self.definitions.rule(name)
            reduce = None if rule is None else rule.on_step if kind == "window" else rule.on_epoch
            if reduce is None:
                _log.warning(
                    "%r is no longer reduced; its saved partial aggregate is not restored", name
                )
                continue
            partials = self._windows if kind == "window" else self._epochs
            try:
                _get_or_create(partials, name, reduce).restore(saved)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                del partials[name]
                _log.warning("cannot restore the partial aggregate of %r: %s", name, error)
            self.changes += 1

    def partial_results(self) -> list[Emission]:
        """Return what the partial aggregates would emit now, without emitting it."""
        emissions: list[Emission] = []
        for name, window in self._windows.items():
            rule = self.definitions.rule(name)
            if rule is not None and window.count:
                emissions += self._result(name, window, self._routing(rule, window.last.epoch))
        for name, partial in self._epochs.items():
            rule = self.definitions.rule(name)
            if rule is not None:
                routing = self._routing(rule, partial.last.epoch)._replace(epoch_result=True)
                emissions += self._result(rule.epoch_name, partial, routing)
        return emissions

    def _emit_window(self, name: str, rule: Rule, *, discard: bool = False) -> list[Emission]:
        window = self._windows[name]
        if discard or not window.reduction.is_cumulative:
            del self._windows[name]
        if not window.count:
            return []
        emissions = self._emit(name, name, window, self._routing(rule, window.last.epoch))
        window.count = 0
        return emissions

    def _emit_epoch(self, name: str, rule: Rule) -> list[Emission]:
        partial = self._epochs.pop(name)
        routing = self._routing(rule, partial.last.epoch)._replace(epoch_result=True)
        return self._emit(name, rule.epoch_name, partial, routing)

    def _emit(
        self, name: str, emitted_as: str, partial: Partial, routing: Routing
    ) -> list[Emission]:
        """Emit the result; if the reduction fails, emit the values themselves on steps."""
        self.changes += 1
        emissions = self._result(emitted_as, partial, routing)
        if emissions:
            self.derived += 1
            self.newest[emitted_as] = emissions[0].value
            return emissions
        values = partial.values or []
        self.reduced -= len(values)
        routing = routing._replace(epoch_result=False)
        return [Emission(name, value, time, routing) for value, time in values]

    def _result(self, name: str, partial: Partial, routing: Routing) -> list[Emission]:
        """Return the result as one emission; none, with a warning, if a user's function fails."""
        try:
            value = partial.reduction.result()
        # The function may even call sys.exit(), which must not end the collector's thread.
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            self._throttled_log.warn("the reduction of %r failed: %s", name, reason, key=name)
            return []
        return [Emission(name, value, partial.last, routing)]

    def _routing(self, rule: Rule, epoch: int) -> Routing:
        if not rule.axis:
            return Routing(sinks=rule.sinks) if rule.sinks else DEFAULT_ROUTING
        if rule.axis == "epoch":
            return Routing("epoch", epoch, rule.sinks)
        at = self._axes[rule.axis]
        is_known = at is not None and math.isfinite(at)
        return Routing(rule.axis, at if is_known else None, rule.sinks)


def _get_or_create(partials: dict[str, Partial], name: str, reduce: Reducer) -> Partial:
    return partials.get(name) or partials.setdefault(name, Partial(reduce))

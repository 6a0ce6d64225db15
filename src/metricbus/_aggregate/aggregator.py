"""Definitions at work: calls go in, what is to be journalled comes out.

A name without a rule passes as it is. Otherwise its values go into a window, which is emitted at
the step of its last value when it is full, and into the epoch's reduction, which is emitted when
the epoch ends. What is still open can be had at any time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from metricbus._aggregate.cross_rank import Merged, Parts
from metricbus._aggregate.reductions import Custom, Reducer, Reduction, reduction_factory
from metricbus._aggregate.rules import Definition, Definitions, Rule
from metricbus._common.records import Call, Medium, Number
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._common.validation import INT_MAX

_log = logging.getLogger("metricbus.definitions")


class Marks(NamedTuple):
    """What rows of one kind have in common; calls with different marks never share a row."""

    axis: str = ""
    at: Number | None = None
    sinks: tuple[str, ...] = ()


NO_MARKS = Marks()


class Place(NamedTuple):
    """Where a value stands."""

    step: int
    epoch: int
    time: int


class Emission(NamedTuple):
    """One value for the journal."""

    name: str
    value: Number
    place: Place
    marks: Marks


class _Open:
    """One open reduction, and where its last value stands.

    For a function of the user's own, which may fail, all values are remembered with their places.
    """

    def __init__(self, reduction: Reduction) -> None:
        self.reduction = reduction
        self.count = 0
        self.place = Place(0, 0, 0)
        self.kept: list[tuple[Number, Place]] | None = [] if isinstance(reduction, Custom) else None

    def add(self, value: Number, weight: float, place: Place, *, keep: bool) -> None:
        self.reduction.add(value, weight)
        self.count += 1
        self.place = place
        if keep and self.kept is not None:
            self.kept.append((value, place))

    def merge(self, other: _Open) -> None:
        """Takes in what came later."""
        self.reduction.merge(other.reduction)
        self.count += other.count
        self.place = other.place

    def state(self) -> dict[str, Any]:
        """As plain lists, texts and numbers."""
        kept = None if self.kept is None else [[value, *place] for value, place in self.kept]
        reduction = self.reduction.state()
        return {
            "count": self.count,
            "place": list(self.place),
            "kept": kept,
            "by": type(self.reduction).__name__,
            "reduction": reduction,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Becomes what it was when `state` was taken; `ValueError` if that was something else."""
        if state["by"] != type(self.reduction).__name__:
            raise ValueError(f"it was reduced by {state['by']}")
        self.reduction.restore(state["reduction"])
        self.count = state["count"]
        self.place = Place(*state["place"])
        if self.kept is not None:
            self.kept = [(value, Place(*place)) for value, *place in state["kept"] or []]


class Aggregator:
    """The open reductions of one process.

    `reduced` counts values that are not journalled themselves, `derived` those that reductions
    gave, `newest` has the last of these by name. `changes` grows with each change of what is open.
    """

    def __init__(self) -> None:
        self.definitions = Definitions(tell=True)
        self.reduced = 0
        self.derived = 0
        self.changes = 0
        self.newest: dict[str, Number] = {}
        self._windows: dict[str, _Open] = {}
        self._epochs: dict[str, _Open] = {}
        self._axes: dict[str, Number | None] = {}  # the latest value of each series that is one
        self._complaints: dict[str, ThrottledLogger] = {}  # of functions that fail, by name

    def define(self, definition: Definition, default: bool) -> list[Emission]:
        """Adds a definition; windows that it changes are emitted first, by the old rule."""
        before = {name: self.definitions.rule(name) for name in self._windows}
        self.definitions.add(definition, default=default)
        if definition.axis:
            self._axes.setdefault(definition.axis, None)
        return [
            emission
            for name, rule in before.items()
            if rule is not None and rule != self.definitions.rule(name)
            for emission in self._emit_window(name, rule, ends=True)
        ]

    def unknown_axes(self) -> list[str]:
        """The series that definitions name as an axis, and that were never logged."""
        return [name for name, value in self._axes.items() if value is None]

    def take(self, calls: Sequence[Call]) -> Iterator[Emission]:
        """What the calls give now, in their order."""
        for what, weight, step, epoch, time in calls:
            place = Place(step, epoch, time)
            if isinstance(what, str):
                yield from self._take(what, weight, 1.0, place)
            else:
                for axis in self._axes.keys() & what.keys():  # wherever in the mapping they stand
                    self._axes[axis] = what[axis]
                for name, value in what.items():
                    yield from self._take(name, value, weight, place)

    def marked(self, medium: Medium) -> Medium:
        """The medium with the axis and the sinks of its name's definition; it is not reduced."""
        rule = self.definitions.rule(medium.name)
        if rule is None or not (rule.axis or rule.sinks):
            return medium
        return msgspec.structs.replace(medium, **self._marks(rule)._asdict())

    def end_epoch(self, *, ranks: bool = False) -> tuple[list[Emission], dict[str, Number]]:
        """What is left in the windows, and the epoch's reductions; these by name, too.

        What waits for the ranks to meet waits on, unless all `ranks` are past that.
        """
        rest = [
            emission
            for name in list(self._windows)
            if (rule := self.definitions.rule(name)) is not None
            for emission in self._emit_window(name, rule, ends=False)
        ]
        results: dict[str, Number] = {}
        for name in list(self._epochs):
            rule = self.definitions.rule(name)
            if rule is None or (rule.across_ranks and not ranks):
                continue
            found = self._emit_epoch(name, rule)
            results |= {one.name: one.value for one in found if one.marks.axis == "epoch"}
            rest += found
        return rest, results

    def across_ranks(self) -> list[str]:
        """The names that wait for the ranks to meet."""
        rules = {name: self.definitions.rule(name) for name in self._epochs}
        return [name for name, rule in rules.items() if rule is not None and rule.across_ranks]

    def take_across(self) -> Parts:
        """What waits for the ranks to meet: this rank's part. It is open no more."""
        parts: dict[str, Mapping[str, Any]] = {}
        for name in self.across_ranks():
            rule = self.definitions.rule(name)
            assert rule is not None
            part = self._epochs.pop(name).state()
            parts[name] = part | {"reduce": rule.on_epoch, "as": rule.epoch_name}
            self.changes += 1
        return parts

    def restore_partials(self, parts: Parts) -> None:
        """The ranks did not meet: what was taken is open again, with what has come since."""
        for name, part in parts.items():
            before = _Open(reduction_factory(part["reduce"])())
            before.restore(part)
            since = self._epochs.get(name)
            if since is not None:
                before.merge(since)
            self._epochs[name] = before
            self.changes += 1

    def merged(self, results: Sequence[Merged], epoch: int, *, ended: bool) -> list[Emission]:
        """What the ranks gave together: of an epoch that has `ended`, on the axis of epochs."""
        emissions = []
        for name, emitted_as, value, step, time in results:
            rule = self.definitions.rule(name)
            place = Place(step, epoch, time)
            marks = NO_MARKS if rule is None else self._marks(rule)
            marks = Marks("epoch", epoch, marks.sinks) if ended else marks
            emissions.append(Emission(emitted_as, value, place, marks))
            self.derived += 1
        return emissions

    def _epoch_of(self, name: str) -> int:
        """The epoch that is open for this name; a very late one, if none is."""
        still_open = self._epochs.get(name) or self._windows.get(name)
        return still_open.place.epoch if still_open and still_open.count else INT_MAX

    def _end_epoch_of(self, name: str, rule: Rule) -> list[Emission]:
        window = self._emit_window(name, rule, ends=False) if name in self._windows else []
        return window + (self._emit_epoch(name, rule) if name in self._epochs else [])

    def _emit_epoch(self, name: str, rule: Rule) -> list[Emission]:
        still_open = self._epochs.pop(name)
        found = self._emit(rule.epoch_name, still_open, _epoch_marks(still_open, rule))
        return found or self._as_they_are(name, still_open, rule)

    def state(self) -> list[Any]:
        """What is open, as plain lists, texts and numbers."""
        return [
            [kind, name, still_open.state()]
            for kind, opened in (("window", self._windows), ("epoch", self._epochs))
            for name, still_open in opened.items()
        ]

    def restore(self, state: Sequence[Any]) -> None:
        """What was open; a name whose rule is another now has what it has by that rule."""
        self.newest.clear()  # what was given before is superseded
        for kind, name, saved in state:
            rule = self.definitions.rule(name)
            reduce = None if rule is None else rule.on_step if kind == "window" else rule.on_epoch
            if reduce is None:
                _log.warning("%r is not reduced any more: what was open is not restored", name)
                continue
            opened = self._windows if kind == "window" else self._epochs
            try:
                _of(opened, name, reduce).restore(saved)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                del opened[name]
                _log.warning("what was open of %r cannot be restored: %s", name, error)
            self.changes += 1

    def partial(self) -> list[Emission]:
        """What the open reductions would give now."""
        found: list[Emission] = []
        for name, window in self._windows.items():
            rule = self.definitions.rule(name)
            if rule is not None and window.count:
                found += self._result_of(name, window, self._marks(rule))
        for name, still_open in self._epochs.items():
            rule = self.definitions.rule(name)
            if rule is not None:
                marks = _epoch_marks(still_open, rule)
                found += self._result_of(rule.epoch_name, still_open, marks)
        return found

    def _take(self, name: str, value: Number, weight: float, place: Place) -> Iterator[Emission]:
        if name in self._axes:
            self._axes[name] = value
        rule = self.definitions.rule(name)
        if rule is None:
            yield Emission(name, value, place, NO_MARKS)
            return
        if self._epoch_of(name) < place.epoch and not rule.across_ranks:  # it was not ended
            yield from self._end_epoch_of(name, rule)
        if rule.on_epoch is not None:
            keep = not rule.passthrough and rule.on_step is None  # else they are emitted anyway
            _of(self._epochs, name, rule.on_epoch).add(value, weight, place, keep=keep)
            self.changes += 1
        if rule.passthrough:
            yield Emission(name, value, place, self._marks(rule))
            return
        self.reduced += 1
        if rule.on_step is not None:
            window = _of(self._windows, name, rule.on_step)
            window.add(value, weight, place, keep=True)
            self.changes += 1
            if window.count >= rule.every:
                yield from self._emit_window(name, rule, ends=False)

    def _emit_window(self, name: str, rule: Rule, *, ends: bool) -> list[Emission]:
        window = self._windows[name]
        if ends or not window.reduction.goes_on:
            del self._windows[name]
        if not window.count:
            return []
        found = self._emit(name, window, self._marks(rule))
        window.count = 0
        return found or self._as_they_are(name, window, rule)

    def _emit(self, name: str, still_open: _Open, marks: Marks) -> list[Emission]:
        self.changes += 1
        found = self._result_of(name, still_open, marks)
        if found:
            self.derived += 1
            self.newest[name] = found[0].value
        return found

    def _as_they_are(self, name: str, still_open: _Open, rule: Rule) -> list[Emission]:
        """The values themselves, on steps: what reduces them has failed."""
        kept = still_open.kept or []
        self.reduced -= len(kept)
        marks = self._marks(rule)
        return [Emission(name, value, place, marks) for value, place in kept]

    def _result_of(self, name: str, still_open: _Open, marks: Marks) -> list[Emission]:
        """The reduction's value; none, and a warning, if a function of the user's own fails."""
        try:
            value = still_open.reduction.result()
        except BaseException as error:  # the function may even call sys.exit()
            self._complaints.setdefault(name, ThrottledLogger(_log)).warn(
                "the reduction of %r failed: %s: %s", name, type(error).__name__, error
            )
            return []
        return [Emission(name, value, still_open.place, marks)]

    def _marks(self, rule: Rule) -> Marks:
        if not rule.axis:
            return Marks(sinks=rule.sinks) if rule.sinks else NO_MARKS
        at = self._axes[rule.axis]
        known = at is not None and math.isfinite(at)
        return Marks(rule.axis, at if known else None, rule.sinks)


def _epoch_marks(still_open: _Open, rule: Rule) -> Marks:
    return Marks("epoch", still_open.place.epoch, rule.sinks)


def _of(opened: dict[str, _Open], name: str, reduce: Reducer) -> _Open:
    found = opened.get(name)
    if found is None:
        found = opened[name] = _Open(reduction_factory(reduce)())
    return found

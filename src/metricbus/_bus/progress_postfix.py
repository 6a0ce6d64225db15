"""The metrics next to a progress bar: those for which `define(..., progress=True)` was called.

The bar shows values that are available without waiting: logged numbers, the newest value copied
from a device, or the newest reduced value. `log()` does no additional work for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from metricbus._aggregate.rules import Rule
from metricbus._common.device_values import DeviceValue
from metricbus._common.records import Number
from metricbus.sinks.media_text import quote_name

if TYPE_CHECKING:
    from metricbus._bus.core import BusCore

_MAX_CHARACTERS = 200  # wider than a terminal


class ProgressSource(Protocol):
    """What progress bars need of a bus."""

    _core: BusCore


class _PostfixMetric(NamedTuple):
    """A metric to show. `is_per_epoch` is whether its value is emitted once an epoch."""

    name: str
    rule: Rule
    is_per_epoch: bool


@dataclass(eq=False)
class Postfix:
    """The text with metrics at the end of one bar.

    It contains the metrics whose names start with `prefix`: those emitted once an epoch if
    `shows_epoch_values`, and the others if `shows_step_values`. `counts_epochs` is whether the bar
    is that of an `epochs()` loop.
    """

    bus: ProgressSource
    counts_epochs: bool
    shows_epoch_values: bool
    shows_step_values: bool
    prefix: str = ""
    _seen: tuple[int, ...] = ()
    _selected: list[_PostfixMetric] = field(default_factory=list)

    def text(self, is_last: bool = False) -> str:
        """Return a text such as `train/loss=0.4812, val/acc=0.91`.

        When the bar is drawn for the last time (`is_last`), the text contains both kinds of values.
        """
        text = ""
        for name, rule, is_per_epoch in self._metrics():
            is_shown = self.shows_epoch_values if is_per_epoch else self.shows_step_values
            if not (is_last or is_shown):
                continue
            value = newest_available(self.bus, name, rule)
            if value is not None:
                text += f"{', ' if text else ''}{quote_name(name)}={format_value(value)}"
            if len(text) > _MAX_CHARACTERS:
                return f"{text[:_MAX_CHARACTERS]}…"
        return text

    def _metrics(self) -> list[_PostfixMetric]:
        """Return the metrics to show. The selection changes only with new names or definitions."""
        core = self.bus._core
        logged = list(core.recorder.newest)  # a single call, because other threads may be logging
        reduced = core.session.reduced_names() if core.session is not None else []
        seen = (len(logged), len(reduced), core.definitions.version)
        if seen != self._seen:
            self._seen = seen
            self._selected = list(self._select(logged, reduced))
        return self._selected

    def _select(self, logged: list[str], reduced: list[str]) -> Iterator[_PostfixMetric]:
        logged_names = set(logged)
        for name in dict.fromkeys([*logged, *reduced]):
            rule = self.bus._core.definitions.rule(name)
            if rule is not None and rule.progress and name.startswith(self.prefix):
                yield _PostfixMetric(name, rule, name not in logged_names or rule.is_epoch_only)


def newest_available(bus: ProgressSource, name: str, rule: Rule) -> Number | None:
    """Return the newest value under a name that needs no waiting, or None if there is none yet."""
    session = bus._core.session
    value = bus._core.recorder.newest.get(name)
    if session is not None and (value is None or not rule.passthrough):
        value = session.newest(name)
    if type(value) is not DeviceValue:
        return value
    numbers = value.source.numbers
    if numbers is not None:
        return numbers[value.position]
    return session.newest_from_device(name) if session is not None else None


def format_value(value: Number) -> str:
    """Format an integer in full, and any other number with four significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"

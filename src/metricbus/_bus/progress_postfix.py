"""Which metrics stand beside a progress bar, and what they are now.

The names are those that `define(..., progress=True)` chose. What is shown of them is what is here
already: a number that was logged, the newest that has come over from a device, or the newest that a
reduction gave. Nothing is waited for, and `log()` does nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from metricbus._aggregate.rules import Definitions, Rule
from metricbus._common.device_values import Pending
from metricbus._common.records import Number

if TYPE_CHECKING:
    from metricbus._bus.session import Session

_LONGEST = 200  # characters; no terminal shows more


class Logged(Protocol):
    """What is asked of a bus."""

    _newest: dict[str, Any]
    _definitions: Definitions
    _session: Session | None


class _Chosen(NamedTuple):
    """A name that is shown, and where."""

    name: str
    rule: Rule
    of_epochs: bool


class Metrics:
    """The text beside one bar.

    It has the names that begin with `below`: those that are given once an epoch if it is one
    `of_epochs`, and the others if it is one `of_steps`.
    """

    def __init__(self, bus: Logged, *, of_epochs: bool, of_steps: bool, below: str = "") -> None:
        self.of_epochs = of_epochs
        self.of_steps = of_steps
        self._bus = bus
        self._below = below
        self._seen: tuple[int, ...] = ()
        self._chosen: list[_Chosen] = []

    def text(self, is_last: bool = False) -> str:
        """Such as `train/loss=0.4812, val/acc=0.91`; for the last time, all that there is."""
        from metricbus.sinks.logging.sink import (
            printable,  # most runs have no bars, and never need it
        )

        text = ""
        for name, rule, of_epochs in self._names():
            if not (is_last or (self.of_epochs if of_epochs else self.of_steps)):
                continue
            value = newest_here(self._bus, name, rule)
            if value is not None:
                text += f"{', ' if text else ''}{printable(name)}={in_short(value)}"
            if len(text) > _LONGEST:
                return f"{text[:_LONGEST]}…"
        return text

    def _names(self) -> list[_Chosen]:
        """Looked through again only when there is a further name or definition."""
        bus = self._bus
        logged = list(bus._newest)  # one call: another thread may be logging
        reduced = bus._session.reduced_names() if bus._session is not None else []
        seen = (len(logged), len(reduced), bus._definitions.version)
        if seen != self._seen:
            self._seen = seen
            self._chosen = list(self._choose(logged, reduced))
        return self._chosen

    def _choose(self, logged: list[str], reduced: list[str]) -> Iterator[_Chosen]:
        own = set(logged)
        for name in dict.fromkeys([*logged, *reduced]):
            rule = self._bus._definitions.rule(name)
            if rule is not None and rule.progress and name.startswith(self._below):
                yield _Chosen(name, rule, name not in own or rule.only_on_epoch)


def newest_here(bus: Logged, name: str, rule: Rule) -> Number | None:
    """The newest value under a name that can be had without waiting; None if there is none yet."""
    session = bus._session
    value = bus._newest.get(name)
    if session is not None and (value is None or not rule.passthrough):
        value = session.newest(name)
    if type(value) is not Pending:
        return value
    numbers = value.snapshot.numbers
    if numbers is not None:
        return numbers[value.place]
    return session.arrived(name) if session is not None else None


def in_short(value: Number) -> str:
    """An integer as it is, another number to four significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"

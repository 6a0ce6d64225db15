"""The hooks that are on: a second one that logs the same is warned of, and one that saw nothing."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable

from metricbus._bus.bus import MetricBus
from metricbus._bus.scope import Scope

_log = logging.getLogger("metricbus.torch")

_on: weakref.WeakSet[Registration] = weakref.WeakSet()


class Registration:
    """The time for which one hook is on. It keeps neither the hook nor what that watches alive.

    `hook` is what warnings call it, and `names` tell what it logs: a second hook that logs one of
    them, of the same object to the same bus and scope, is warned of. With `silence`, this warning
    is given once, when the hook ends or the run is closed, if `has_seen` was not set until then and
    the bus logs.
    """

    def __init__(
        self,
        hook: str,
        bus: MetricBus | Scope,
        watched: object,
        names: Iterable[str],
        silence: str = "",
    ) -> None:
        self.has_seen = False
        self._hook = hook
        self._bus = bus
        self._watched = weakref.ref(watched)
        self._names = frozenset(names)
        self._silence = silence
        self._pid = os.getpid()
        if any(self._doubles(other) for other in _on):
            _log.warning(
                "%s: this %s is watched already, and what both log comes twice at each step; "
                'remove() the first, or give one a scope, such as bus.scope("again")',
                hook,
                type(watched).__name__,
            )
        _on.add(self)
        if silence:
            bus.before_close(self._tell_silence)

    def end(self, error: BaseException | None = None) -> None:
        """The hook is off; an `error` that ended its block says more than that it saw nothing."""
        _on.discard(self)
        self._names = frozenset()  # the bus keeps this object until the run is closed
        self.has_seen = self.has_seen or error is not None
        self._tell_silence()

    def _tell_silence(self) -> None:
        silence, self._silence = self._silence, ""
        if not silence or self.has_seen or self._bus.run is None:
            return
        if os.getpid() == self._pid:  # in a forked child it is a copy, which waits for nothing
            _log.warning("%s: %s", self._hook, silence)

    def _doubles(self, other: Registration) -> bool:
        return (
            self._hook == other._hook
            and self._watched() is other._watched()
            and _bus_of(self._bus) is _bus_of(other._bus)
            and _prefix_of(self._bus) == _prefix_of(other._bus)
            and not self._names.isdisjoint(other._names)
        )


def _bus_of(bus: MetricBus | Scope) -> object:
    return bus._bus if isinstance(bus, Scope) else bus


def _prefix_of(bus: MetricBus | Scope) -> str:
    return bus._prefix if isinstance(bus, Scope) else ""

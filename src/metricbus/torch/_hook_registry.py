"""Registry of active hooks, for warnings about duplicates and hooks that are never called."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from metricbus._bus.bus import MetricBus
from metricbus._bus.scope import Scope

_log = logging.getLogger("metricbus.torch")

_active: weakref.WeakSet[HookRegistration] = weakref.WeakSet()


class HookRegistration:
    """An active hook. Keeps neither the hook nor the watched object alive.

    `hook` names the hook in warnings. `names` identify the metrics it logs: a second registration
    of the same hook, object, bus and scope with at least one common name logs a warning. If
    `unused_warning` is given and `was_called` is still False when the hook is removed or the run is
    closed, that warning is logged once, unless the bus is off.
    """

    def __init__(
        self,
        hook: str,
        bus: MetricBus | Scope,
        watched: object,
        names: Iterable[str],
        unused_warning: str = "",
    ) -> None:
        self.was_called = False
        self._hook = hook
        self._bus = bus
        self._watched = weakref.ref(watched)
        self._names = frozenset(names)
        self._unused_warning = unused_warning
        self._pid = os.getpid()
        if any(self._duplicates(other) for other in _active):
            _log.warning(
                "%s: this %s is already watched, so the same metrics are logged twice per step; "
                "remove() the first hook, or pass a scope to one of them, such as "
                'bus.scope("again")',
                hook,
                type(watched).__name__,
            )
        _active.add(self)
        if unused_warning:
            bus.before_close(self._warn_if_unused)

    def end(self, error: BaseException | None = None) -> None:
        """Unregister the hook. An `error` that ended its `with` block suppresses the warning."""
        _active.discard(self)
        # The bus keeps a reference to this object until the run is closed.
        self._names = frozenset()
        self.was_called = self.was_called or error is not None
        self._warn_if_unused()

    def _warn_if_unused(self) -> None:
        warning, self._unused_warning = self._unused_warning, ""
        # A forked child has a copy of the registration; only the parent may warn.
        is_owner = os.getpid() == self._pid
        if warning and not self.was_called and self._bus.run is not None and is_owner:
            _log.warning("%s: %s", self._hook, warning)

    def _duplicates(self, other: HookRegistration) -> bool:
        return (
            self._hook == other._hook
            and self._watched() is other._watched()
            and _bus_and_prefix(self._bus) == _bus_and_prefix(other._bus)
            and not self._names.isdisjoint(other._names)
        )


def log_row(bus: MetricBus | Scope, row: Mapping[str, Any]) -> None:
    """Log at the bus's current step. Without an explicit step, the call could advance it."""
    bus.log(row, step=bus.step)


def _bus_and_prefix(bus: MetricBus | Scope) -> tuple[int, str]:
    return (id(bus._bus), bus._prefix) if isinstance(bus, Scope) else (id(bus), "")

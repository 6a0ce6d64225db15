"""The process-wide bus: `from metricbus import bus`, for any loop and any library.

It is off, and its `log()` costs next to nothing, until `metricbus.configure(...)` is called. If
`METRICBUS_SINKS` or `METRICBUS_RUN_DIR` is set, its first `log()` opens it.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Unpack

from metricbus._aggregate.rules import Definition
from metricbus._bus.arguments import BusArguments, list_arguments
from metricbus._bus.bus import MetricBus
from metricbus._bus.core import BusCore, State
from metricbus._common.settings import Settings
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus")


class DefaultBus(MetricBus):
    """A bus whose core is replaced each time it is configured, in code or by the environment."""

    def __init__(self) -> None:
        self._open_lock = threading.RLock()
        # Kept for each run that is opened, because libraries define names when they are imported.
        self._definition_log: list[tuple[Definition, bool]] = []
        self._phases: dict[str, str] = {}
        # Reads no settings: an import must not fail because a setting is wrong.
        self._use(BusCore(Settings()))

    def _use(self, core: BusCore) -> None:
        super()._use(core)
        core.phases.update(self._phases)
        self._phases = core.phases
        if core.state is State.IDLE:
            core.open_idle = self._open_if_configured
            self.log = self._log_when_open  # type: ignore[method-assign]

    def _open(self, name: str | None = None, **arguments: Unpack[BusArguments]) -> None:
        """Open a run as `MetricBus(**arguments)` does, after closing the one that is open.

        Definitions are kept. The first run keeps the step and the epoch, because a loop may have
        started already; later runs start at 0. Threads that log meanwhile wait for the new run.
        """
        with self._open_lock:
            first = self._core if self._core.session is None else None
            clock = first.recorder.clock if first else None
            self.log = self._log_when_open  # type: ignore[method-assign]
            try:
                self.close()
                core = BusCore.open(name, arguments, clock)
            except BaseException:
                core = BusCore(Settings(), clock=clock)
                core.enter(State.DISABLED)
                self._use(core)
                raise
            core.recorder.clock.owner_thread = threading.get_ident()
            if first:
                core.close_hooks = first.close_hooks
            for definition, default in self._definition_log:
                try:
                    core.define(definition, default=default)
                except ConfigError as error:  # for example a library's, which names other sinks
                    _log.warning("%s. The definition is ignored.", error)
            self._use(core)

    def _define(self, definition: Definition, *, default: bool = False) -> None:
        with self._open_lock:
            super()._define(definition, default=default)
            self._definition_log.append((definition, default))

    def _log_when_open(self, *args: Any, **kwargs: Any) -> None:
        """Open the bus if the environment configures it, then log.

        This is `log` until a run is open. Callers may hold a reference to it for longer.
        """
        self._open_if_configured()
        self._core.log(*args, **kwargs)

    def _open_if_configured(self) -> BusCore:
        with self._open_lock:
            if self._core.state is State.IDLE:
                if self._core.will_log:
                    self._open()
                else:
                    self._core.enter(State.DISABLED)
                    self._use(self._core)
            return self._core

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a reference: unpickling returns the process-wide bus of the other process.

        If that is not configured yet, it becomes a copy of this one.
        """
        core = self._core
        is_configured = core.is_on or core.settings.disabled
        return _default_bus, (core if is_configured else None,)

    def _renew_lock_in_child(self) -> None:
        # After a fork, the lock may be held by a thread that does not exist in the child.
        self._open_lock = threading.RLock()


bus = DefaultBus()
os.register_at_fork(after_in_child=bus._renew_lock_in_child)


def _default_bus(copy: BusCore | None) -> DefaultBus:
    with bus._open_lock:
        if copy is not None and bus._core.state is State.IDLE:
            bus._use(copy)
            bus._definition_log += [(definition, False) for definition in copy.definitions]
    return bus


@list_arguments
def configure(name: str | None = None, **arguments: Unpack[BusArguments]) -> MetricBus:
    """Open the process-wide bus and return it.

    Accepts the arguments of `MetricBus()` and raises the same errors. If the bus is open, its run
    is closed first.
    """
    bus._open(name, **arguments)
    return bus

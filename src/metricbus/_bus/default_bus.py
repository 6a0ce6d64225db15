"""The process-wide bus: `from metricbus import bus`, for any loop and any library.

It is off, and its `log()` costs next to nothing, until `metricbus.configure(...)` is called. If
`METRICBUS_SINKS` or `METRICBUS_RUN_DIR` is set, its first `log()` opens it.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from metricbus._aggregate.rules import Definition
from metricbus._bus.bus import MetricBus
from metricbus._common.settings import ProgressMode, Settings, env_variable, read_env_setting
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus")

_OPENING_VARIABLES = (env_variable("sinks"), env_variable("run_dir"))


class DefaultBus(MetricBus):
    """A bus that opens on its first call after it is configured, in code or by the environment."""

    def __init__(self) -> None:
        # Reads no settings: an import must not fail because a setting is wrong.
        self._init_without_run()
        self._open_lock = threading.RLock()
        # Kept for each run that is opened, because libraries define names when they are imported.
        self._definition_log: list[tuple[Definition, bool]] = []
        self.__dict__["log"] = self._log_when_open

    def _open(self, **arguments: Any) -> None:
        """Open a run as `MetricBus(**arguments)` does, after closing the one that is open.

        Definitions are kept. The first run keeps the step and the epoch, because a loop may have
        started already; later runs start at 0. Threads that log meanwhile wait for the new run.
        """
        with self._open_lock:
            clock = None if self._session else self._clock
            close_hooks = [] if self._session else self._close_hooks
            self.__dict__["log"] = self._log_when_open
            try:
                self.close()
                super().__init__(**arguments)
            except BaseException:
                self._switch_off()
                raise
            self._clock = clock or self._clock
            self._clock.owner_thread = threading.get_ident()
            self._close_hooks = close_hooks
            for definition, default in self._definition_log:
                try:
                    super()._define(definition, default=default)
                except ConfigError as error:  # for example a library's, which names other sinks
                    _log.warning("%s. The definition is ignored.", error)
            if self.__dict__["log"] == self._log_when_open:  # unless a setting replaced it
                del self.__dict__["log"]

    def _define(self, definition: Definition, *, default: bool = False) -> None:
        with self._open_lock:
            super()._define(definition, default=default)
            self._definition_log.append((definition, default))

    def _log_when_open(self, *args: Any, **kwargs: Any) -> None:
        """Open the bus if the environment configures it, then log.

        This is `log` until a run is open. Callers may hold a reference to it for longer.
        """
        with self._open_lock:
            if self.__dict__.get("log") == self._log_when_open and self._session is None:
                if _is_configured_by_environment():
                    self._open()
                else:
                    self._switch_off()
        if self._session is not None:
            self.log(*args, **kwargs)

    def _progress_setting(self) -> ProgressMode:
        if self._settings != Settings():
            return super()._progress_setting()
        setting: ProgressMode = read_env_setting("progress")
        return setting

    def _will_log(self) -> bool:
        is_unopened = self.__dict__.get("log") == self._log_when_open
        return self.is_on or (is_unopened and _is_configured_by_environment())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a reference: unpickling returns the process-wide bus of the other process."""
        return _default_bus, ()

    def _renew_lock_in_child(self) -> None:
        # After a fork, the lock may be held by a thread that does not exist in the child.
        self._open_lock = threading.RLock()


def _is_configured_by_environment() -> bool:
    return any(variable in os.environ for variable in _OPENING_VARIABLES)


bus = DefaultBus()
os.register_at_fork(after_in_child=bus._renew_lock_in_child)


def _default_bus() -> DefaultBus:
    return bus


def configure(**arguments: Any) -> MetricBus:
    """Open the process-wide bus and return it.

    Accepts the arguments of `MetricBus()` and raises the same errors. If the bus is open, its run
    is closed first.
    """
    bus._open(**arguments)
    return bus

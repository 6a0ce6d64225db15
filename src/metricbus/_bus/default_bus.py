"""The process-wide bus: `from metricbus import bus`, for any loop and any library.

It is off, and its `log()` costs next to nothing, until `metricbus.configure(...)` is called or, at
its first `log()`, `METRICBUS_SINKS` or `METRICBUS_RUN_DIR` is found in the environment.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from metricbus._aggregate.rules import Definition
from metricbus._bus.bus import MetricBus
from metricbus._common.settings import Bars, Settings, from_environment, variable_of
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus")

_SPEAKS = (variable_of("sinks"), variable_of("run_dir"))


class DefaultBus(MetricBus):
    """A bus that opens when somebody has said where its metrics go."""

    def __init__(self) -> None:
        self._begin_idle()  # and reads no setting: importing must not fail for one that is wrong
        self._opening = threading.RLock()
        self._defined: list[tuple[Definition, bool]] = []  # libraries do so when they are imported
        self.__dict__["log"] = self._log_when_open

    def _open(self, **arguments: Any) -> None:
        """Becomes what `MetricBus(**arguments)` would be; a run that is open is closed first.

        Step and epoch start anew, but for the first time: loops may be on their way already. Who
        logs meanwhile waits until the new run is open. What has been defined holds on.
        """
        with self._opening:
            clock = None if self._session else self._clock
            ends = [] if self._session else self._ends
            self.__dict__["log"] = self._log_when_open
            try:
                self.close()
                super().__init__(**arguments)
            except BaseException:
                self._switch_off()
                raise
            self._clock = clock or self._clock
            self._ends = ends
            for definition, default in self._defined:
                try:
                    super()._define(definition, default=default)
                except ConfigError as error:  # of a library, perhaps, that knows other sinks
                    _log.warning("%s; it does not hold", error)
            if self.__dict__["log"] == self._log_when_open:  # unless the settings want another
                del self.__dict__["log"]

    def _define(self, definition: Definition, *, default: bool = False) -> None:
        with self._opening:
            super()._define(definition, default=default)
            self._defined.append((definition, default))

    def _log_when_open(self, *args: Any, **kwargs: Any) -> None:
        """What `log` is until a run is open; others may have kept it beyond that."""
        with self._opening:
            if self.__dict__.get("log") == self._log_when_open and self._session is None:
                if _is_spoken_of():
                    self._open()
                else:
                    self._switch_off()
        if self._session is not None:
            self.log(*args, **kwargs)

    def _bar_setting(self) -> Bars:
        if self._settings != Settings():
            return super()._bar_setting()
        setting: Bars = from_environment("progress")
        return setting

    def _will_log(self) -> bool:
        waits = self.__dict__.get("log") == self._log_when_open
        return self.is_on or (waits and _is_spoken_of())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is the process-wide bus of wherever it arrives."""
        return _the_bus, ()

    def _renew_in_child(self) -> None:
        """What a fork does to the child's copy: a thread that is not there may hold the lock."""
        self._opening = threading.RLock()


def _is_spoken_of() -> bool:
    """Whether the environment says where metrics go."""
    return any(variable in os.environ for variable in _SPEAKS)


bus = DefaultBus()
os.register_at_fork(after_in_child=bus._renew_in_child)


def _the_bus() -> DefaultBus:
    return bus


def configure(**arguments: Any) -> MetricBus:
    """Opens the process-wide bus; takes what `MetricBus(...)` takes, and returns it."""
    bus._open(**arguments)
    return bus

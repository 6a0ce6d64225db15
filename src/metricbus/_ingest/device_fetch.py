"""Copies the device values of queued calls to the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metricbus._common.device_values import DeviceCopy, DeviceValue, fetch
from metricbus._common.records import Call, Number
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._ingest.queue import CallQueue, Command, DeferredCall
from metricbus.errors import DeviceError


class DeviceFetcher:
    """Replaces device values by numbers.

    `lost` counts the values that could not be copied to the host. `newest` has the latest number
    by name.
    """

    def __init__(self, queue: CallQueue, throttled_log: ThrottledLogger) -> None:
        self.lost = 0
        self.newest: dict[str, Number] = {}
        self._queue = queue
        self._throttled_log = throttled_log

    def fetch(self, calls: list[Call | Command]) -> None:
        """Copy the values of these calls, and of all calls still in the queue, in one transfer."""
        if _unfetched(calls):
            fetch(_unfetched([*calls, *self._queue.calls.copy()]))

    def resolve(self, call: DeferredCall) -> list[Call]:
        """Return the call with numbers, without values that could not be copied to the host."""
        row: dict[str, Number] = {}
        for name, value in call.row.items():
            number = self.number(name, call.step, value)
            if number is None:
                self.lost += 1
            else:
                row[name] = number
        self.newest |= row
        return [(row, call.weight, call.step, call.epoch, call.time)] if row else []

    def number(self, name: str, step: int, value: Any) -> Number | None:
        """Return the value as a number; None, with a warning, if it cannot be copied."""
        try:
            number: Number = value.number() if isinstance(value, DeviceValue) else value
        except DeviceError as error:
            self._throttled_log.warn("%r at step %d is lost: %s", name, step, error)
            return None
        return number


def _unfetched(calls: Iterable[Call | Command]) -> list[DeviceCopy]:
    return [
        value.source
        for call in calls
        if isinstance(call, DeferredCall)
        for value in call.row.values()
        if isinstance(value, DeviceValue) and value.source.numbers is None
    ]

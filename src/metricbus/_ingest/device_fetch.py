"""Calls whose values are still on a device, and how they get their numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metricbus._common.device_values import DeviceCopy, Pending, bring
from metricbus._common.records import Call, Number
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._ingest.queue import CallQueue, Control, Deferred
from metricbus.errors import DeviceError


class DeviceFetcher:
    """Has what the calls wait for come over.

    `lost` counts the values that no device gave, `newest` has the last of those that came, by name.
    """

    def __init__(self, queue: CallQueue, complaints: ThrottledLogger) -> None:
        self.lost = 0
        self.newest: dict[str, Number] = {}
        self._queue = queue
        self._complaints = complaints

    def bring(self, calls: list[Call | Control]) -> None:
        """Brings over what these calls wait for; with it, by the same transfer, what comes next."""
        if _outstanding(calls):
            bring(_outstanding([*calls, *self._queue.calls.copy()]))

    def resolved(self, call: Deferred) -> list[Call]:
        """The call with the numbers themselves; without those that the device did not give."""
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
        """The value itself; None, and a warning, if the device does not give it."""
        try:
            number: Number = value.number() if isinstance(value, Pending) else value
        except DeviceError as error:
            self._complaints.warn("%r at step %d is lost: %s", name, step, error)
            return None
        return number


def _outstanding(calls: Iterable[Call | Control]) -> list[DeviceCopy]:
    return [
        value.snapshot
        for call in calls
        if isinstance(call, Deferred)
        for value in call.row.values()
        if isinstance(value, Pending) and value.snapshot.numbers is None
    ]

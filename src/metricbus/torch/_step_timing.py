"""The measurements of one training step, as collected by `StepTimer`."""

from __future__ import annotations

from typing import Any

from metricbus.torch._device_timers import DeviceTimer


class StepTiming:
    """The events recorded during one step. Time is attributed to the innermost open phase.

    A step consists of one or several items of the loop, whose times and counts are summed.
    `requested_at` is the host's time in seconds when the next item was requested.
    """

    def __init__(self, start: Any, requested_at: float) -> None:
        self.start = start
        self.requested_at = requested_at
        self.end: Any = None
        self.data_secs = 0.0
        self.bus_step = self.epoch = self.peak_memory = 0
        self.counts = {"samples": 0, "tokens": 0}
        self.has_failed = False
        self._open_phases: list[str] = []
        self._interval_start: Any = None
        self._intervals: list[tuple[str, Any, Any]] = []

    def item_finished(self, event: Any, peak_memory: int, epoch: int) -> None:
        """Let the step end at this event, unless another item follows."""
        self.end = event
        self.peak_memory = max(self.peak_memory, peak_memory)
        self.epoch = epoch

    def enter(self, phase: str, event: Any) -> None:
        """Open a phase at this event."""
        self._close_interval(event)
        self._open_phases.append(phase)

    def leave(self, event: Any) -> None:
        """Close the innermost phase at this event."""
        self._close_interval(event)
        self._open_phases.pop()

    def metrics(self, timer: DeviceTimer) -> dict[str, float]:
        """Return the values to log. The device must have reached the event `end`."""
        total = timer.seconds(self.start, self.end)
        times = {"data": self.data_secs}
        for phase, start, end in self._intervals:
            times[phase] = times.get(phase, 0.0) + timer.seconds(start, end)
        times["other"] = max(0.0, total - sum(times.values()))
        times["step"] = total
        row = {f"time/{name}": secs for name, secs in times.items()}
        for unit, count in self.counts.items():
            if count and total > 0.0:
                row[f"throughput/{unit}"] = count / total
        row["memory/peak"] = self.peak_memory
        return row

    def _close_interval(self, event: Any) -> None:
        if self._open_phases:
            self._intervals.append((self._open_phases[-1], self._interval_start, event))
        self._interval_start = event

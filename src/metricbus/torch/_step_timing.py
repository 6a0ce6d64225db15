"""One step of a training loop, as `StepTimer` has measured it."""

from __future__ import annotations

from typing import Any

from metricbus.torch._device_timers import Marks


class TimedStep:
    """What was marked in one step. Stretches between marks belong to the innermost part.

    A step has one item of the loop, or several, of which data, parts and counts add up.
    """

    def __init__(self, start: Any, asked_at: float) -> None:
        self.start = start
        self.asked_at = asked_at
        self.end: Any = None
        self.data = 0.0
        self.number = self.epoch = self.peak = 0
        self.counts = {"samples": 0, "tokens": 0}
        self.failed = False
        self._inside: list[str] = []
        self._since: Any = None
        self._stretches: list[tuple[str, Any, Any]] = []

    def arrive(self, now: float) -> None:
        """The item that was asked for is there, by the CPU's time."""
        self.data += now - self.asked_at

    def end_item(self, mark: Any, peak: int, epoch: int) -> None:
        """The step ends at this mark, unless another item comes."""
        self.end = mark
        self.peak = max(self.peak, peak)
        self.epoch = epoch

    def enter(self, part: str, mark: Any) -> None:
        """The part begins at this mark."""
        self._turn(mark)
        self._inside.append(part)

    def leave(self, mark: Any) -> None:
        """The innermost part ends at this mark."""
        self._turn(mark)
        self._inside.pop()

    def row(self, marks: Marks) -> dict[str, float]:
        """What is logged of it, once the device has got to its end."""
        whole = marks.seconds(self.start, self.end)
        times = {"data": self.data}
        for part, start, end in self._stretches:
            times[part] = times.get(part, 0.0) + marks.seconds(start, end)
        times["other"] = max(0.0, whole - sum(times.values()))
        times["step"] = whole
        row = {f"time/{name}": secs for name, secs in times.items()}
        for what, count in self.counts.items():
            if count and whole > 0.0:
                row[f"throughput/{what}"] = count / whole
        row["memory/peak"] = self.peak
        return row

    def _turn(self, mark: Any) -> None:
        if self._inside:
            self._stretches.append((self._inside[-1], self._since, mark))
        self._since = mark

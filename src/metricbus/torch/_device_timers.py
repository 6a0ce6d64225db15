"""Marks in time, in the work of a device: what `StepTimer` measures with."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch


class Marks(Protocol):
    """Marks in the work that a kind of device is given, and the time between two of them."""

    def mark(self) -> Any:
        """A mark behind what the device has been given so far."""

    def is_over(self, mark: Any) -> bool:
        """Whether the device has got there; never waits."""

    def wait(self, mark: Any) -> None:
        """Waits until it has."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks that are over."""

    def peak_memory(self) -> int:
        """The most bytes that were in use."""


class HostMarks:
    """Work that is done when it returns: a mark is the CPU's time."""

    def __init__(self, device: torch.device) -> None: ...

    def mark(self) -> float:
        """The CPU's time."""
        return perf_counter()

    def is_over(self, mark: float) -> bool:
        """As soon as it is made."""
        return True

    def wait(self, mark: float) -> None:
        """There is nothing to wait for."""

    def seconds(self, start: float, end: float) -> float:
        """The difference."""
        return end - start

    def peak_memory(self) -> int:
        """The most that the process ever had in memory."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


class CudaMarks:
    """CUDA events in the stream that is current when a mark is made."""

    def __init__(self, device: torch.device) -> None:
        if not torch.cuda.is_available():
            raise ValueError(
                f'device={str(device)!r}, but torch finds no CUDA device; write device="cpu"'
            )
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """An event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def is_over(self, mark: torch.cuda.Event) -> bool:
        """Asks the driver, which answers at once."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def wait(self, mark: torch.cuda.Event) -> None:
        """Waits for the event."""
        mark.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """The device's own time, as exact as half a microsecond."""
        return float(start.elapsed_time(end)) / 1000

    def peak_memory(self) -> int:
        """The most that tensors took since the last call."""
        most = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return most


MARKS: dict[str, Callable[[torch.device], Marks]] = {"cpu": HostMarks, "cuda": CudaMarks}
"""By torch's name for the type of device; all others are timed like a CPU."""


def marks_of(device: torch.device | str | None) -> Marks:
    """The marks for a device; if it is left out, for "cuda" where there is one, else "cpu"."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    return MARKS.get(where.type, HostMarks)(where)

"""Timers for the host and for CUDA devices, as used by `StepTimer`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch


class DeviceTimer(Protocol):
    """Records events on a device and measures the time between them."""

    def record(self) -> Any:
        """Record an event after the work that has been submitted so far."""

    def is_complete(self, event: Any) -> bool:
        """Check, without waiting, whether the device has reached the event."""

    def wait(self, event: Any) -> None:
        """Wait until the device has reached the event."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the time between two complete events, in seconds."""

    def peak_memory(self) -> int:
        """Return the peak memory use in bytes."""


class HostTimer:
    """Timer for devices whose work is complete when a call returns; an event is a clock reading."""

    def __init__(self, device: torch.device) -> None: ...

    def record(self) -> float:
        return perf_counter()

    def is_complete(self, event: float) -> bool:
        return True

    def wait(self, event: float) -> None:
        pass

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def peak_memory(self) -> int:
        """Return the peak resident memory of the process since it started, in bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class CudaTimer:
    """Timer that records CUDA events in the current stream of a device.

    Raises `ValueError` if torch cannot use CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        if not torch.cuda.is_available():
            raise ValueError(
                f'device={str(device)!r}, but torch finds no CUDA device; pass device="cpu"'
            )
        self._device = device

    def record(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def is_complete(self, event: torch.cuda.Event) -> bool:
        return bool(event.query())  # type: ignore[no-untyped-call]

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the device time between two events, with a resolution of half a microsecond."""
        return float(start.elapsed_time(end)) / 1000

    def peak_memory(self) -> int:
        """Return the peak memory allocated by tensors since the last call, in bytes."""
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak


TIMERS: dict[str, Callable[[torch.device], DeviceTimer]] = {"cpu": HostTimer, "cuda": CudaTimer}
"""Timers by torch's device type. Other types use the host's clock."""


def timer_for(device: torch.device | str | None) -> DeviceTimer:
    """Return the timer for a device; None means CUDA if available, else the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return TIMERS.get(device.type, HostTimer)(device)

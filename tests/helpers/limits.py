"""Time limits of tests. They only end hangs, and grow on slow machines."""

from __future__ import annotations

import time

_REFERENCE_SECS = 0.006  # of the loop below, on the machine for which the limits were chosen


def _loop_secs() -> float:
    started = time.perf_counter()
    for _ in range(200_000):
        pass
    return time.perf_counter() - started


SLOWNESS = max(1.0, min(_loop_secs() for _ in range(3)) / _REFERENCE_SECS)
"""How many times slower this machine is than the reference."""


def scaled(secs: float) -> float:
    """The limit for something that takes `secs` at most on the reference machine under load."""
    return secs * SLOWNESS


HANG_SECS = scaled(300)
"""The limit for one test or one child process: whatever takes longer hangs."""

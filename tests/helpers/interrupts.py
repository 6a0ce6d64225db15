"""Helper that raises KeyboardInterrupt at any point of a function."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def interrupt_at(work: Callable[[], object], point: int) -> bool:
    """Call `work` and interrupt it at trace event `point`. Return False if it has fewer events."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal point
        frame.f_trace_opcodes = True
        point -= 1
        if point < 0:
            raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    # A garbage collection would run callbacks of pytest plugins, which would then be interrupted.
    gc.disable()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(previous)
        gc.enable()
    return False

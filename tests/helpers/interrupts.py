"""Raises KeyboardInterrupt at any point of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def interrupt_at(work: Callable[[], object], point: int) -> bool:
    """Call `work` and interrupt it at trace event number `point`; return False if it has fewer."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal point
        frame.f_trace_opcodes = True
        point -= 1
        if point < 0:
            raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(previous)
    return False

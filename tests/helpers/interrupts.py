"""Ctrl-C wherever it may come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def interrupted(work: Callable[[], object], point: int) -> bool:
    """Does the work with Ctrl-C at one of its points; False if it has fewer."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal point
        frame.f_trace_opcodes = True
        point -= 1
        if point < 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False

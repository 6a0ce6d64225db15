"""The cost of `log()` in calls and interpreter instructions, which do not vary as timings do."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from metricbus import MetricBus
from metricbus._ingest.recorder import Recorder

# Interpreter instructions in log() itself. Python 3.11 executes 85.
MAX_INSTRUCTIONS = 90
ROW = {f"train/m{i}": i / 7 for i in range(20)}


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[MetricBus]:
    """A bus whose collector sleeps and whose names have been checked."""
    with MetricBus(sinks="", dir=tmp_path, flush_secs=600, batch_size=60_000) as bus:
        bus.log("train/loss", 0.5, step=0)
        bus.log(ROW, step=0)
        yield bus


def count_calls(function: Callable[[], object]) -> Counter[str]:
    """Count the functions called, including those in C, by name."""
    calls: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_name] += 1
        elif event == "c_call":
            calls[arg.__name__] += 1

    sys.setprofile(trace)
    try:
        function()
    finally:
        sys.setprofile(None)
    del calls["setprofile"], calls["<lambda>"]
    return calls


def count_instructions(function: Callable[[], object], code: CodeType) -> int:
    """Count the interpreter instructions that are executed in `code`."""
    executed = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal executed
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        executed += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return executed


def test_logging_a_value_calls_only_the_clock_and_append(bus: MetricBus) -> None:
    calls = count_calls(lambda: bus.log("train/loss", 0.5, step=1))
    assert calls == {"log": 1, "time_ns": 1, "append": 1, "len": 1}


def test_logging_a_value_without_a_step_in_a_loop_calls_nothing_else(bus: MetricBus) -> None:
    for _ in bus.steps(range(1)):
        calls = count_calls(lambda: bus.log("train/loss", 0.5))
    assert calls == {"log": 1, "time_ns": 1, "append": 1, "len": 1}


def test_number_of_calls_does_not_grow_with_a_mapping(bus: MetricBus) -> None:
    bus.log(dict(list(ROW.items())[:2]), step=1)
    small = count_calls(lambda: bus.log(dict(list(ROW.items())[:2]), step=2))
    large = count_calls(lambda: bus.log(ROW, step=3))
    assert sum(large.values()) <= sum(small.values()) <= 14


def test_logging_a_value_stays_within_the_instruction_limit(bus: MetricBus) -> None:
    executed = count_instructions(lambda: bus.log("train/loss", 0.5, step=1), Recorder.log.__code__)
    assert 0 < executed <= MAX_INSTRUCTIONS


def test_disabled_bus_calls_nothing(tmp_path: Path) -> None:
    off = MetricBus(disabled=True, dir=tmp_path)
    assert count_calls(lambda: off.log("train/loss", 0.5, step=1)) == {"do_nothing": 1}

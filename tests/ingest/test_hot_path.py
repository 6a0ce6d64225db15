"""What a call of `log()` does, counted and not timed, so that it does not grow unseen."""

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

MOST_INSTRUCTIONS = 90  # of the interpreter, in log() itself; Python 3.11 executes 85
ROW = {f"train/m{i}": i / 7 for i in range(20)}


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[MetricBus]:
    """A bus whose collector sleeps, so that nobody is to be woken; its names are known."""
    with MetricBus(sinks="", dir=tmp_path, flush_secs=600, batch_size=60_000) as bus:
        bus.log("train/loss", 0.5, step=0)
        bus.log(ROW, step=0)
        yield bus


def calls_of(function: Callable[[], object]) -> Counter[str]:
    """The functions that are called, those in C too, by name."""
    found: Counter[str] = Counter()

    def look(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1
        elif event == "c_call":
            found[arg.__name__] += 1

    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(None)
    del found["setprofile"], found["<lambda>"]
    return found


def instructions_of(function: Callable[[], object], code: CodeType) -> int:
    """How many instructions of the interpreter are executed in this code."""
    executed = 0

    def look(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal executed
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        executed += event == "opcode"
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        function()
    finally:
        sys.settrace(before)
    return executed


def test_a_value_costs_a_look_at_the_clock_and_an_append(bus: MetricBus) -> None:
    calls = calls_of(lambda: bus.log("train/loss", 0.5, step=1))
    assert calls == {"log": 1, "time_ns": 1, "append": 1, "len": 1}


def test_a_value_without_a_step_costs_no_more_in_a_loop(bus: MetricBus) -> None:
    for _ in bus.steps(range(1)):
        calls = calls_of(lambda: bus.log("train/loss", 0.5))
    assert calls == {"log": 1, "time_ns": 1, "append": 1, "len": 1}


def test_the_calls_of_a_mapping_do_not_grow_with_it(bus: MetricBus) -> None:
    bus.log(dict(list(ROW.items())[:2]), step=1)
    small = calls_of(lambda: bus.log(dict(list(ROW.items())[:2]), step=2))
    large = calls_of(lambda: bus.log(ROW, step=3))
    assert sum(large.values()) <= sum(small.values()) <= 14


def test_a_value_takes_few_instructions(bus: MetricBus) -> None:
    executed = instructions_of(lambda: bus.log("train/loss", 0.5, step=1), Recorder.log.__code__)
    assert 0 < executed <= MOST_INSTRUCTIONS


def test_a_bus_that_is_off_calls_nothing(tmp_path: Path) -> None:
    off = MetricBus(disabled=True, dir=tmp_path)
    assert calls_of(lambda: off.log("train/loss", 0.5, step=1)) == {"_do_nothing": 1}

"""The current step and epoch, and what advances them."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import metricbus
from metricbus import MetricBus
from metricbus._common.clock import Clock, check_step
from metricbus._common.device_values import ACCELERATORS
from metricbus.testing import MemorySink
from tests.helpers.fake_accelerator import FakeAccelerator


def steps_of(bus: MetricBus, sink: MemorySink, name: str) -> list[int]:
    bus.flush()
    return [point.step for point in sink.series(name)]


def test_log_without_step_counts_from_zero(bus: MetricBus, sink: MemorySink) -> None:
    for _ in range(4):
        bus.log("loss", 1.0)
        bus.log("acc", 0.5)
    assert steps_of(bus, sink, "loss") == [0, 1, 2, 3]
    assert steps_of(bus, sink, "acc") == [0, 1, 2, 3]


def test_log_of_a_mapping_without_step_counts_from_zero(bus: MetricBus, sink: MemorySink) -> None:
    for _ in range(3):
        bus.log({"loss": 1.0, "acc": 0.5})
    assert steps_of(bus, sink, "acc") == [0, 1, 2]


def test_validation_loop_does_not_advance_the_step(bus: MetricBus, sink: MemorySink) -> None:
    for _ in range(2):
        for _ in range(2):
            bus.log("train", 1.0)
        for _ in range(3):
            bus.log("val", 1.0)
    assert steps_of(bus, sink, "train") == [0, 1, 2, 3]
    assert steps_of(bus, sink, "val") == [1, 1, 1, 3, 3, 3]


def test_only_the_thread_that_opened_the_bus_drives_the_step(
    bus: MetricBus, sink: MemorySink
) -> None:
    def monitor() -> None:
        for _ in range(5):
            bus.log("gpu/load", 0.5)

    for _ in range(3):
        thread = threading.Thread(target=monitor)
        thread.start()
        thread.join()
        bus.log("loss", 1.0)
    assert steps_of(bus, sink, "loss") == [0, 1, 2]
    assert steps_of(bus, sink, "gpu/load") == [0] * 10 + [1] * 5


def test_info_names_the_metric_that_counts_the_steps_once(
    bus: MetricBus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "metricbus.steps")
    for _ in range(4):
        bus.log({"loss": 1.0, "acc": 0.5})
    (message,) = [r.getMessage() for r in caplog.records if r.name == "metricbus.steps"]
    assert message.startswith("'loss' counts the steps: each further value of it advances")
    assert "pass step= or loop over bus.steps()" in message


def test_thread_that_configures_the_default_bus_drives_its_step(tmp_path: Path) -> None:
    def train() -> None:
        metricbus.configure(sinks="", dir=tmp_path)
        for _ in range(3):
            metricbus.bus.log("loss", 1.0)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert metricbus.bus.step == 2
    metricbus.bus.close()


def test_explicit_step_is_kept_and_the_current_step_only_grows(
    bus: MetricBus, sink: MemorySink
) -> None:
    for step in (5, 3, 5, 7, 0):
        bus.log("x", 1.0, step=step)
    assert steps_of(bus, sink, "x") == [5, 3, 5, 7, 0]
    assert bus.step == 7


def test_log_without_step_uses_the_last_explicit_step(bus: MetricBus, sink: MemorySink) -> None:
    for i in range(4):
        bus.log("loss", 1.0, step=10 * i)
        bus.log("acc", 1.0)
    assert steps_of(bus, sink, "acc") == [0, 10, 20, 30]


def test_late_explicit_step_does_not_stop_the_counting(bus: MetricBus, sink: MemorySink) -> None:
    for _ in range(3):
        bus.log("loss", 1.0)
        bus.log("val", 1.0, step=0)
    assert steps_of(bus, sink, "loss") == [0, 1, 2]


def test_steps_advances_when_the_next_item_is_taken(bus: MetricBus, sink: MemorySink) -> None:
    for _ in bus.steps(range(3)):
        bus.log("x", 1.0)
    bus.log("after", 1.0)
    assert steps_of(bus, sink, "x") == [0, 1, 2]
    assert steps_of(bus, sink, "after") == [2]


def test_second_loop_continues_after_the_first(bus: MetricBus, sink: MemorySink) -> None:
    loop = bus.steps([10, 20])
    for _ in range(2):
        for _ in loop:
            bus.log("x", 1.0)
    assert steps_of(bus, sink, "x") == [0, 1, 2, 3]


def test_repeated_names_in_a_steps_loop_do_not_advance_the_step(
    bus: MetricBus, sink: MemorySink
) -> None:
    for _ in bus.steps(range(2)):
        for _ in range(4):
            bus.log("micro", 1.0)
    assert steps_of(bus, sink, "micro") == [0, 0, 0, 0, 1, 1, 1, 1]


def test_inner_steps_loop_does_not_advance_the_step(bus: MetricBus, sink: MemorySink) -> None:
    for _ in bus.steps(range(2)):
        for _ in bus.steps(range(3)):
            bus.log("x", 1.0)
    assert steps_of(bus, sink, "x") == [0, 0, 0, 1, 1, 1]


def test_loop_with_advance_false_keeps_the_step(bus: MetricBus) -> None:
    assert list(bus.steps("abc", advance=False)) == ["a", "b", "c"]
    assert bus.step == 0


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_does_not_change_steps_and_epochs(
    bus: MetricBus, sink: MemorySink, progress: bool
) -> None:
    for _ in bus.epochs(2, progress=progress):
        for batch in bus.steps("abc", progress=progress):
            bus.log("x", 1.0)
            list(bus.steps(range(2), progress=progress))
            if batch == "b":
                break
    assert steps_of(bus, sink, "x") == [0, 1, 2, 3]
    assert (bus.step, bus.epoch) == (3, 1)


def test_loop_after_a_break_advances_the_step(bus: MetricBus) -> None:
    for _ in bus.steps(range(100)):
        break
    list(bus.steps(range(2)))
    assert bus.step == 2


def test_loop_after_an_exception_advances_the_step(bus: MetricBus) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in bus.steps(range(100)):
            raise ZeroDivisionError
    list(bus.steps(range(2)))
    assert bus.step == 2


def test_loop_has_the_length_of_its_iterable(bus: MetricBus) -> None:
    assert len(bus.steps([1, 2, 3])) == 3
    with pytest.raises(TypeError, match="len"):
        len(bus.steps(iter([1])))


def test_advance_counts_examples(bus: MetricBus, sink: MemorySink) -> None:
    for size in (32, 32, 7):
        bus.log("x", 1.0)
        bus.advance(size)
    assert steps_of(bus, sink, "x") == [0, 32, 64]
    assert bus.step == 71


def test_error_for_two_step_drivers_names_both(bus: MetricBus) -> None:
    for _ in bus.steps(range(1)):
        with pytest.raises(RuntimeError, match=r"advance\(\) and bus\.steps\(\)"):
            bus.advance()


def test_epochs_are_numbered_and_recorded(bus: MetricBus, sink: MemorySink) -> None:
    for epoch in bus.epochs(2):
        for _ in bus.steps(range(2)):
            bus.log("x", float(epoch))
    bus.flush()
    assert [(p.step, p.epoch) for p in sink.series("x")] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert list(bus.epochs(2)) == [2, 3]


def test_end_epoch_advances_the_epoch_only_outside_an_epochs_loop(bus: MetricBus) -> None:
    bus.end_epoch()
    assert bus.epoch == 1
    for epoch in bus.epochs(1):
        bus.end_epoch()
        assert bus.epoch == epoch == 1


def test_nested_epochs_loop_raises(bus: MetricBus) -> None:
    with pytest.raises(RuntimeError, match="range"):
        for _ in bus.epochs(1):
            list(bus.epochs(1))


def test_explicit_epoch_is_kept_and_the_current_epoch_only_grows(
    bus: MetricBus, sink: MemorySink
) -> None:
    for epoch in (2, 1):
        bus.log("x", 1.0, step=0, epoch=epoch)
    bus.flush()
    assert [point.epoch for point in sink.series("x")] == [2, 1]
    assert bus.epoch == 2


def test_advances_from_8_threads_are_all_counted() -> None:
    clock = Clock()

    def advance() -> None:
        for _ in range(20_000):
            clock.advance(1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=advance) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert clock.step == 160_000


@pytest.mark.parametrize(
    "step",
    [7, 7.0, np.int8(7), np.uint64(7), np.float32(7), np.array(7), torch.tensor(7)],
    ids=repr,
)
def test_accepts_any_whole_number_as_step_and_epoch(
    bus: MetricBus, sink: MemorySink, step: Any
) -> None:
    bus.log("x", 1.0, step=step, epoch=step)
    bus.log({"x": 1.0}, step=step, epoch=step)
    bus.flush()
    points = [(point.step, point.epoch) for point in sink.series("x")]
    assert points == [(7, 7), (7, 7)]
    assert all(type(number) is int for point in points for number in point)


def test_step_on_a_device_raises_instead_of_waiting(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACCELERATORS, "cpu", FakeAccelerator())
    with pytest.raises(TypeError, match=r"step= must be an int, not Tensor .* wait for the device"):
        bus.log("x", 1.0, step=torch.tensor(7))


def test_error_for_a_fractional_epoch_shows_how_to_use_it_as_an_axis(bus: MetricBus) -> None:
    with pytest.raises(TypeError, match=r"epoch= must be an int, not float \(0.5\); .*axis="):
        bus.log("x", 1.0, epoch=0.5)  # type: ignore[call-overload]


@given(st.integers(0, 2**63 - 1))
def test_accepts_any_non_negative_64_bit_step(step: int) -> None:
    assert check_step(step) == step
    assert check_step(np.int64(step)) == step


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (-1, ValueError),
        (2**63, ValueError),
        (10**30, ValueError),
        (np.int64(-5), ValueError),
        (-1.0, ValueError),
        (1.5, TypeError),
        (float("nan"), TypeError),
        (float("inf"), TypeError),
        (True, TypeError),
        (np.bool_(True), TypeError),
        ("1", TypeError),
        (torch.tensor(3.5), TypeError),
        (torch.tensor(True), TypeError),
        (torch.tensor([3]), TypeError),
        (np.array([3]), TypeError),
        (np.float32(2.5), TypeError),
    ],
    ids=repr,
)
@pytest.mark.parametrize("what", ["step", "epoch"])
def test_bad_step_or_epoch_raises_and_logs_nothing(
    bus: MetricBus, sink: MemorySink, what: str, step: Any, kind: type[Exception]
) -> None:
    for call in (("x", 1.0), ({"x": 1.0},)):
        with pytest.raises(kind, match=f"{what}= must be"):
            bus.log(*call, **{what: step})
    assert bus.flush().logged == 0
    assert (bus.step, bus.epoch) == (0, 0)

"""`StepTimer`, with a fake device whose clock the tests set."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from metricbus import MetricBus
from metricbus.testing import MemorySink
from metricbus.torch import _step_timer
from metricbus.torch._device_timers import TIMERS
from metricbus.torch._step_timer import StepTimer
from metricbus.torch._watch_optimizer import watch_optimizer


class FakeDevice:
    """A device timer whose clock, `time`, is also the clock of the host.

    Events are complete immediately unless `is_late` is true.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self.is_late = False
        self.waits = 0
        self.events = 0
        self.is_broken = False

    def work(self, secs: float) -> None:
        self.time += secs

    def record(self) -> float:
        self.events += 1
        return self.time

    def is_complete(self, event: float) -> bool:
        if self.is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return not self.is_late

    def wait(self, event: float) -> None:
        self.is_late = False
        self.waits += 1

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def peak_memory(self) -> int:
        return 1024


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    device = FakeDevice()
    monkeypatch.setitem(TIMERS, "cpu", lambda _: device)
    monkeypatch.setattr(_step_timer, "perf_counter", lambda: device.time)
    return device


@pytest.fixture
def timer(bus: MetricBus, device: FakeDevice) -> StepTimer:
    return StepTimer(bus, device="cpu")


def points(bus: MetricBus, sink: MemorySink, name: str) -> list[tuple[int, int | float]]:
    bus.flush()
    return [(point.step, point.value) for point in sink.series(name)]


def load_slowly(device: FakeDevice, items: Iterable[int]) -> Iterator[int]:
    """Yield the items, each after a second."""
    for item in items:
        device.work(1.0)
        yield item


def test_logs_the_phases_of_a_step(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    for _ in timer(bus.steps(load_slowly(device, range(2)))):
        with timer.forward():
            device.work(2.0)
        with timer.backward():
            device.work(4.0)
        with timer.optimizer():
            device.work(8.0)
        device.work(16.0)
    bus.flush()
    times = {"data": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 8.0, "other": 16.0}
    row = {f"time/{name}": secs for name, secs in times.items()}
    row |= {"time/step": 31.0, "memory/peak": 1024}
    assert [(record.step, record.values) for record in sink.records] == [(0, row), (1, row)]


def test_times_of_a_repeated_phase_are_summed(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    for _ in timer(bus.steps(range(1))):
        for _ in range(3):
            with timer.forward():
                device.work(1.0)
            with timer.backward():
                device.work(2.0)
    assert points(bus, sink, "time/forward") == [(0, 3.0)]
    assert points(bus, sink, "time/backward") == [(0, 6.0)]
    assert points(bus, sink, "time/other") == [(0, 0.0)]


def test_time_in_a_nested_phase_counts_for_the_inner_one_only(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    for _ in timer(bus.steps(range(1))):
        with timer.backward():
            device.work(1.0)
            with timer.forward():
                device.work(2.0)
            device.work(4.0)
    assert points(bus, sink, "time/backward") == [(0, 5.0)]
    assert points(bus, sink, "time/forward") == [(0, 2.0)]


def test_omits_phases_and_counts_that_were_not_used(
    bus: MetricBus, sink: MemorySink, timer: StepTimer
) -> None:
    for _ in timer(bus.steps(range(1))):
        pass
    bus.flush()
    assert sink.names() == ["time/data", "time/other", "time/step", "memory/peak"]


def test_logs_samples_and_tokens_per_second(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    for _ in timer(bus.steps(load_slowly(device, range(1)))):
        device.work(1.0)
        timer.count(samples=4)
        timer.count(samples=4, tokens=100)
    assert points(bus, sink, "throughput/samples") == [(0, 4.0)]
    assert points(bus, sink, "throughput/tokens") == [(0, 50.0)]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"samples": 1.5}, TypeError),
        ({"tokens": torch.tensor([1, 2])}, TypeError),
        ({"samples": -1}, ValueError),
    ],
)
def test_rejects_an_invalid_count(
    timer: StepTimer, given: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"{next(iter(given))}= must be"):
        timer.count(**given)


def test_steps_the_device_finishes_later_are_logged_at_their_own_step(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    device.is_late = True
    seen = []
    for number in timer(bus.steps(range(4))):
        device.work(1.0 + number)
        device.is_late = number < 2
        seen.append([step for step, _ in points(bus, sink, "time/step")])
    assert seen == [[], [], [], [0, 1, 2]]
    assert points(bus, sink, "time/step") == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]


def test_waits_for_the_device_only_when_the_loop_ends(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    device.is_late = True
    for _ in timer(bus.steps(range(3))):
        device.work(1.0)
        assert device.waits == 0
    assert device.waits == 1
    assert points(bus, sink, "time/step") == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_other_time_is_zero_when_work_overlaps_with_loading(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    for _ in timer(bus.steps(load_slowly(device, range(1)))):
        with timer.forward():
            device.work(2.0)
        device.work(-0.5)  # the host waited for data during half a second of device work
    assert points(bus, sink, "time/other") == [(0, 0.0)]


def test_records_no_events_in_steps_that_are_not_measured(
    bus: MetricBus, sink: MemorySink, device: FakeDevice
) -> None:
    timer = StepTimer(bus, every=3, device="cpu")
    for number in timer(bus.steps(range(7))):
        before = device.events
        with timer.forward():
            device.work(1.0)
        assert (device.events > before) == (number % 3 == 0)
    assert points(bus, sink, "time/step") == [(0, 1.0), (3, 1.0), (6, 1.0)]


def test_a_step_ends_at_break(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    for number in timer(bus.steps(range(10))):
        with timer.forward():
            device.work(1.0)
            if number == 1:
                break
        device.work(1.0)
    assert points(bus, sink, "time/step") == [(0, 2.0), (1, 1.0)]
    assert list(bus.steps("ab")) == ["a", "b"]
    assert bus.step == 3


def test_does_not_log_a_step_in_which_a_phase_raises(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    with pytest.raises(ZeroDivisionError):
        for number in timer(bus.steps(range(10))):
            with timer.forward():
                device.work(1.0)
                if number == 1:
                    raise ZeroDivisionError
    assert points(bus, sink, "time/step") == [(0, 1.0)]
    for _ in timer(bus.steps(range(1))):
        device.work(3.0)
    assert points(bus, sink, "time/step") == [(0, 1.0), (2, 3.0)]


def test_logs_finished_steps_when_the_loader_raises(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        for _ in timer(bus.steps(failing())):
            device.work(1.0)
    assert points(bus, sink, "time/step") == [(0, 1.0)]


def test_ignores_device_errors(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    device.is_broken = True
    for _ in timer(bus.steps(range(2))):
        device.work(1.0)
    assert points(bus, sink, "time/step") == []


def test_phases_and_counts_have_no_effect_outside_a_loop(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    with timer.forward():
        timer.count(samples=1)
    assert device.events == 0
    assert points(bus, sink, "time/step") == []


def test_rejects_a_loop_inside_its_own_loop(bus: MetricBus, timer: StepTimer) -> None:
    for _ in timer(bus.steps(range(1))):
        with pytest.raises(RuntimeError, match="pass the inner loop to another StepTimer"):
            list(timer(range(3)))
    assert list(timer("ab")) == ["a", "b"]


def test_a_second_loop_continues_the_steps(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, timer: StepTimer
) -> None:
    loop = timer(bus.steps(range(2)))
    for _ in range(2):
        for _ in loop:
            device.work(1.0)
    assert [step for step, _ in points(bus, sink, "time/step")] == [0, 1, 2, 3]


def test_a_loop_has_the_length_of_the_wrapped_iterable(bus: MetricBus, timer: StepTimer) -> None:
    assert len(timer(bus.steps([1, 2, 3]))) == 3
    with pytest.raises(TypeError, match="len"):
        len(timer(iter([1])))


def test_uses_the_steps_that_repeated_names_count(
    bus: MetricBus, sink: MemorySink, timer: StepTimer
) -> None:
    for number in timer(range(3)):
        bus.log("loss", float(number))
    assert points(bus, sink, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [step for step, _ in points(bus, sink, "time/step")] == [0, 1, 2]


def test_a_step_driven_by_the_optimizer_is_logged_where_it_began(
    bus: MetricBus, sink: MemorySink, timer: StepTimer
) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch_optimizer(bus, optimizer, advance=True):
        for _ in timer(bus.steps(range(2), advance=False)):
            optimizer.step()
    assert [step for step, _ in points(bus, sink, "time/step")] == [0, 1]


@pytest.fixture
def optimizer(bus: MetricBus) -> Iterator[torch.optim.Optimizer]:
    """An optimizer that drives the bus's step."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with watch_optimizer(bus, optimizer, advance=True):
        yield optimizer


def accumulate(
    bus: MetricBus,
    timer: StepTimer,
    device: FakeDevice,
    optimizer: torch.optim.Optimizer,
    *,
    batches: int,
) -> None:
    """Run a loop with an optimizer step every two batches of 1 s for data and 6 s of work."""
    for number in timer(bus.steps(load_slowly(device, range(batches)), advance=False)):
        with timer.forward():
            device.work(2.0)
        with timer.backward():
            device.work(4.0)
        timer.count(samples=7)
        if number % 2:
            optimizer.step()


def test_batches_of_one_optimizer_step_are_summed_into_one_row(
    bus: MetricBus,
    sink: MemorySink,
    device: FakeDevice,
    timer: StepTimer,
    optimizer: torch.optim.Optimizer,
) -> None:
    accumulate(bus, timer, device, optimizer, batches=4)
    bus.flush()
    times = {"data": 2.0, "forward": 4.0, "backward": 8.0, "other": 0.0, "step": 14.0}
    row = {f"time/{name}": secs for name, secs in times.items()}
    row |= {"throughput/samples": 1.0, "memory/peak": 1024, "lr": 0.1}
    assert [(record.step, record.values) for record in sink.records] == [(0, row), (1, row)]


def test_remaining_batches_at_the_end_of_the_loop_are_a_step(
    bus: MetricBus,
    sink: MemorySink,
    device: FakeDevice,
    timer: StepTimer,
    optimizer: torch.optim.Optimizer,
) -> None:
    accumulate(bus, timer, device, optimizer, batches=3)
    assert points(bus, sink, "time/step") == [(0, 14.0), (1, 7.0)]


def test_the_time_until_the_loader_is_exhausted_belongs_to_no_step(
    bus: MetricBus,
    sink: MemorySink,
    device: FakeDevice,
    timer: StepTimer,
    optimizer: torch.optim.Optimizer,
) -> None:
    def loader() -> Iterator[int]:
        yield 0
        device.work(8.0)

    for _ in timer(bus.steps(loader(), advance=False)):
        device.work(1.0)
    assert points(bus, sink, "time/step") == [(0, 1.0)]


def test_break_ends_a_step_with_several_batches(
    bus: MetricBus,
    sink: MemorySink,
    device: FakeDevice,
    timer: StepTimer,
    optimizer: torch.optim.Optimizer,
) -> None:
    for number in timer(bus.steps(range(9), advance=False)):
        device.work(1.0)
        if number == 2:
            break
    assert points(bus, sink, "time/step") == [(0, 3.0)]


def test_does_not_log_an_optimizer_step_in_which_a_phase_raises(
    bus: MetricBus,
    sink: MemorySink,
    device: FakeDevice,
    timer: StepTimer,
    optimizer: torch.optim.Optimizer,
) -> None:
    for number in timer(bus.steps(range(4), advance=False)):
        with suppress(ZeroDivisionError), timer.forward():
            device.work(1.0)
            if number == 0:
                raise ZeroDivisionError
        if number % 2:
            optimizer.step()
    assert points(bus, sink, "time/step") == [(1, 2.0)]


def test_every_counts_optimizer_steps(
    bus: MetricBus, sink: MemorySink, device: FakeDevice, optimizer: torch.optim.Optimizer
) -> None:
    timer = StepTimer(bus, every=2, device="cpu")
    accumulate(bus, timer, device, optimizer, batches=10)
    assert points(bus, sink, "time/step") == [(0, 14.0), (2, 14.0), (4, 14.0)]


def test_logs_the_peak_memory_of_all_batches(
    bus: MetricBus,
    sink: MemorySink,
    device: FakeDevice,
    timer: StepTimer,
    optimizer: torch.optim.Optimizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = iter([300, 500, 400])
    monkeypatch.setattr(device, "peak_memory", lambda: next(peaks))
    for _ in timer(bus.steps(range(3), advance=False)):
        pass
    assert points(bus, sink, "memory/peak") == [(0, 500)]


def test_every_keeps_counting_in_the_next_loop(
    bus: MetricBus, sink: MemorySink, device: FakeDevice
) -> None:
    timer = StepTimer(bus, every=2, device="cpu")
    for _ in range(4):
        for _ in timer(bus.steps(range(1))):
            device.work(1.0)
    assert points(bus, sink, "time/step") == [(0, 1.0), (2, 1.0)]


@pytest.mark.parametrize("given", [nn.Linear(1, 1), None], ids=["model", "none"])
def test_error_without_a_bus_names_the_first_argument(given: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"must be a MetricBus.*not {type(given).__name__}.*StepTimer\(bus"
    ):
        StepTimer(given)


def test_a_scope_prefixes_the_names(bus: MetricBus, sink: MemorySink, device: FakeDevice) -> None:
    timer = StepTimer(bus.scope("rank0"), device="cpu")
    for _ in timer(bus.steps(range(1))):
        device.work(1.0)
    assert points(bus, sink, "rank0/time/step") == [(0, 1.0)]


def test_measures_nothing_after_remove_and_loops_continue(
    bus: MetricBus, sink: MemorySink, device: FakeDevice
) -> None:
    device.is_late = True
    with StepTimer(bus, device="cpu") as timer:
        for number in timer(bus.steps(range(4))):
            with timer.forward():
                device.work(1.0)
            if number == 1:
                timer.remove()
    assert points(bus, sink, "time/step") == [(0, 1.0)]
    assert bus.step == 3


def test_records_no_events_when_the_bus_is_off(device: FakeDevice) -> None:
    timer = StepTimer(MetricBus(disabled=True), device="cpu")
    for _ in timer(range(3)):
        with timer.forward():
            timer.count(samples=1)
    assert device.events == 0


def test_host_times_add_up_and_memory_is_the_process_peak(bus: MetricBus, sink: MemorySink) -> None:
    timer = StepTimer(bus, device="cpu")
    matrix = torch.randn(64, 64)
    for _ in timer(bus.steps(range(3))):
        with timer.forward():
            matrix = (matrix @ matrix).tanh()
    bus.flush()
    for record in sink.records:
        row = record.values
        parts = row["time/data"] + row["time/forward"] + row["time/other"]
        assert row["time/forward"] > 0.0
        assert parts == pytest.approx(row["time/step"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        assert peak / 2 < row["memory/peak"] <= peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_rejects_an_unavailable_device(bus: MetricBus) -> None:
    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        StepTimer(bus, device="cuda:0")


@pytest.mark.parametrize(("every", "kind"), [(0, ValueError), (2.5, TypeError)])
def test_rejects_an_invalid_every(bus: MetricBus, every: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="every= must be"):
        StepTimer(bus, every=every)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_measures_device_time_on_cuda_without_synchronizing(
    bus: MetricBus, sink: MemorySink
) -> None:
    timer = StepTimer(bus)
    matrix = torch.randn(2048, 2048, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in timer(bus.steps(range(5))):
            with timer.forward():
                for _ in range(20):
                    matrix = (matrix @ matrix).tanh()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    forward = points(bus, sink, "time/forward")
    steps = points(bus, sink, "time/step")
    assert [step for step, _ in forward] == [0, 1, 2, 3, 4]
    assert all(0.0 < part <= whole for (_, part), (_, whole) in zip(forward, steps, strict=True))
    assert all(peak >= matrix.nbytes for _, peak in points(bus, sink, "memory/peak"))

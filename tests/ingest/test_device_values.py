"""Values on accelerators, with a device that tests drive: CPU tensors, brought over by command.

There is no CUDA device where most of these run. What is CUDA's own is one class (`devices.Cuda`),
tested in `test_torch_gpu.py` where there is one; everything else is the code that works here.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy

import metricbus
from metricbus import MetricBus, Scalars
from metricbus._common.device_values import ACCELERATORS, as_64_bits, is_deferred, spread
from metricbus._journal.segment_reader import JournalReader


class Device:
    """An accelerator made of CPU tensors; with `held` it does not come to an end."""

    def __init__(self) -> None:
        self.transfers: list[int] = []  # how many numbers each brought
        self.threads: set[int] = set()
        self.ready = threading.Event()
        self.ready.set()
        self.fails: Exception | None = None

    def stream(self, device: Any) -> str:
        return "the only one"

    def bring(self, device: Any, parts: Sequence[Any], streams: Iterable[Any]) -> Any:
        assert list(streams) == ["the only one"]
        self.threads.add(threading.get_ident())
        assert self.ready.wait(30)
        if self.fails:
            raise self.fails
        gathered = torch.cat([as_64_bits(part) for part in parts])
        self.transfers.append(gathered.numel())
        return gathered.numpy().copy()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()
    monkeypatch.setitem(ACCELERATORS, "cpu", device)
    yield device
    device.ready.set()


def series(bus: MetricBus, name: str) -> list[float]:
    assert bus.folder is not None
    found: list[float] = metricbus.read(bus.folder).series(name).value.tolist()
    return found


def test_log_does_not_wait_for_the_device(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="") as bus:
        for i in range(1000):
            bus.log("loss", torch.tensor(float(i)))
        assert device.transfers == []
        device.ready.set()
    assert series(bus, "loss") == list(range(1000))


def test_the_calling_thread_brings_nothing_over(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.log("loss", torch.tensor(1.0))
        bus.log({"a": torch.tensor(1.0), "b": 2.0})
        bus.flush()
    assert threading.get_ident() not in device.threads


def test_a_change_in_place_afterwards_does_not_show(device: Device) -> None:
    device.ready.clear()
    total = torch.zeros(())
    row = {"a": torch.zeros(1), "b": torch.zeros(1, 1)}
    with MetricBus(sinks="") as bus:
        for _ in range(3):
            bus.log("total", total)
            bus.log(row)
            total += 1
            for value in row.values():
                value.add_(1)
        device.ready.set()
    assert series(bus, "total") == series(bus, "a") == series(bus, "b") == [0.0, 1.0, 2.0]


def test_the_very_last_value_comes_out_at_close(device: Device) -> None:
    bus = MetricBus(sinks="")
    bus.log("loss", torch.tensor(0.5))
    report = bus.close()
    assert report.complete
    assert series(bus, "loss") == [0.5]


def test_everything_outstanding_comes_over_in_one_transfer(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="", flush_secs=60, batch_size=60_000) as bus:
        for i in range(2000):  # more than the collector takes at once
            bus.log("x", torch.tensor(float(i)))
        device.ready.set()
        bus.flush()
        assert device.transfers == [2000]


def test_types_arrive_as_they_do_from_main_memory(device: Device) -> None:
    given = {
        "float64": torch.tensor(0.1, dtype=torch.float64),
        "float32": torch.tensor(0.1),
        "float16": torch.tensor(0.1, dtype=torch.float16),
        "bfloat16": torch.tensor(0.1, dtype=torch.bfloat16),
        "float8": torch.tensor([0.5]).to(torch.float8_e4m3fn),
        "int64": torch.tensor(2**63 - 1),
        "int8": torch.tensor(-128, dtype=torch.int8),
        "bool": torch.tensor(True),
        "nan": torch.tensor(math.nan),
        "-inf": torch.tensor([[-math.inf]]),
        "number": 3,
        "main": np.float32(0.1),
    }
    with MetricBus(sinks="") as bus:
        bus.log(given)
    assert bus.folder is not None
    (row,) = (
        line.record
        for line in JournalReader(bus.folder / "journal").read()
        if isinstance(line.record, Scalars)
    )
    expected = {
        name: value.item() if hasattr(value, "item") else value for name, value in given.items()
    }
    expected["bool"] = 1
    assert list(row.values) == list(expected), "in the order of the mapping"
    assert str(row.values) == str(expected)


@given(st.lists(st.one_of(st.floats(width=32), st.integers(-(2**63), 2**63 - 1), st.booleans())))
def test_whatever_is_mixed_comes_out_as_it_went_in(numbers: list[float]) -> None:
    device = Device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ACCELERATORS, "cpu", device)
        with MetricBus(sinks="") as bus:
            bus.log({str(i): torch.tensor(number) for i, number in enumerate(numbers)})
    found = [series(bus, str(i))[0] for i in range(len(numbers))]
    np.testing.assert_array_equal(found, np.array([float(number) for number in numbers]))


def test_what_is_no_single_number_is_refused_in_the_callers_line(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        for wrong in (torch.zeros(2), torch.zeros(0), torch.tensor(1j)):
            with pytest.raises(TypeError, match="'loss'"):
                bus.log("loss", wrong)
        with pytest.raises(TypeError, match="'b'"):
            bus.log({"a": torch.zeros(()), "b": torch.zeros(3)})
    assert bus.stats().logged == 0


def test_a_tensor_that_is_spread_over_ranks_is_refused_with_the_mend() -> None:
    class Spread:
        def item(self) -> float:
            raise AssertionError("that would meet other ranks")

        full_tensor = item

    with MetricBus(sinks="") as bus, pytest.raises(TypeError, match="full_tensor"):
        bus.log("loss", Spread())


def test_reductions_take_them(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.define("loss", every=4, reduce="mean")
        bus.define("acc", on_step=False, on_epoch=True)
        for i in bus.steps(range(8)):
            bus.log("loss", torch.tensor(float(i)))
            bus.log("acc", torch.tensor(i % 2 == 0), weight=1 + i % 2)
        assert bus.end_epoch() == {"acc": pytest.approx(1 / 3)}
    assert series(bus, "loss") == [1.5, 5.5]


def test_last_gives_the_number(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.log("loss", torch.tensor(0.25))
        assert bus.last("loss") == 0.25
        assert type(bus.last("loss")) is float


def test_a_value_is_never_brought_twice(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.log("loss", torch.tensor(0.25))
        bus.last("loss")
        bus.flush()
    assert device.transfers == [1]


def test_a_row_of_a_tensor_is_spread_over_names(device: Device) -> None:
    values = torch.arange(3.0, requires_grad=True)
    with MetricBus(sinks="") as bus:
        bus.log(spread(["a", "b", "c"], values * 2))
    assert [series(bus, name) for name in "abc"] == [[0.0], [2.0], [4.0]]
    assert device.transfers == [3]


def test_names_and_numbers_of_a_spread_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="argument"):
        spread(["a", "b"], torch.zeros(3))


def test_what_a_device_does_not_give_is_counted_and_told(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.fails = RuntimeError("CUDA error: device-side assert triggered")
    with MetricBus(sinks="") as bus:
        bus.log({"loss": torch.tensor(1.0), "lr": 0.1})
        bus.log("acc", torch.tensor(1.0))
        bus.log("after", 2.0)
        bus.flush()
        with pytest.raises(metricbus.DeviceError, match="device-side assert"):
            bus.last("loss")
    report = bus.stats()
    assert (report.logged, report.dropped, report.waiting, report.journalled) == (4, 2, 0, 2)
    assert "device-side assert" in caplog.text
    assert series(bus, "lr") == [0.1]
    assert series(bus, "after") == [2.0]


def test_what_waits_on_the_device_is_bounded_by_the_queue(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="", queue_size=100, overflow="drop_newest") as bus:
        for i in range(1000):
            bus.log("x", torch.tensor(float(i)))
        assert bus.stats().waiting <= 100 + 256 + 1  # and what the collector has in hand
        device.ready.set()
    report = bus.stats()
    assert report.logged == 1000
    assert report.dropped >= 1000 - 357
    assert len(series(bus, "x")) == report.journalled


def test_nothing_is_kept_of_what_has_been_logged(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        weights = []
        for _ in range(100):
            weight = torch.ones(3, requires_grad=True)
            weights.append(weakref.ref(weight))
            loss = (weight**2).sum()  # with the graph behind it
            bus.log("loss", loss)
            bus.log({"loss2": loss, "n": 1})
        del loss, weight
        gc.collect()
        assert not any(ref() is not None for ref in weights)
        bus.flush()


@pytest.mark.parametrize("deferred", [True, False], ids=["accelerator", "cpu"])
def test_memory_is_flat_over_many_tensors_that_require_grad(
    deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deferred:
        monkeypatch.setitem(ACCELERATORS, "cpu", Device())
    weight = torch.ones(3, requires_grad=True)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    with MetricBus(sinks="") as bus:
        bus.log("loss", weight.sum())
        bus.flush()
        before = tensors()
        for _ in range(100_000 if not deferred else 20_000):
            bus.log("loss", weight.sum())
        bus.flush()
        assert tensors() <= before + 2


def test_many_threads_log_values_of_a_device(device: Device) -> None:
    def work(number: int) -> None:
        for i in range(500):
            bus.log(f"x{number}", torch.tensor(float(i)))

    with MetricBus(sinks="") as bus:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for n in range(8):
        assert series(bus, f"x{n}") == list(range(500))


def test_other_devices_are_waited_for() -> None:
    assert not is_deferred(torch.tensor(1.0)), "main memory"
    assert not is_deferred(torch.tensor(1.0, device="meta"))
    assert not is_deferred(1.0)
    assert not is_deferred(np.float32(1.0))


def test_one_value_that_cannot_be_had_costs_no_other(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bring = device.bring

    def fail_on_13(where: Any, parts: Sequence[Any], streams: Iterable[Any]) -> Any:
        if any(13.0 in part for part in parts):
            raise RuntimeError("a number of ill luck")
        return bring(where, parts, streams)

    monkeypatch.setattr(device, "bring", fail_on_13)
    device.ready.clear()
    with MetricBus(sinks="") as bus:
        for i in range(100):
            bus.log("x", torch.tensor(float(i)))
        device.ready.set()
    assert series(bus, "x") == [i for i in range(100) if i != 13]
    assert bus.stats().dropped == 1
    assert "a number of ill luck" in caplog.text


@pytest.mark.usefixtures("device")
def test_what_only_looks_like_a_plain_tensor_is_taken_at_the_call() -> None:
    class Subclass(torch.Tensor):
        pass

    assert not is_deferred(torch.tensor(1.0).as_subclass(Subclass))
    assert is_deferred(torch.nn.Parameter(torch.tensor(1.0)))


@pytest.mark.usefixtures("device")
def test_inside_vmap_it_is_refused_in_the_callers_line() -> None:
    with MetricBus(sinks="") as bus:

        def loss(x: torch.Tensor) -> torch.Tensor:
            with pytest.raises(TypeError, match="'x'"):
                bus.log("x", x.sum())
            return x.sum()

        torch.func.vmap(loss)(torch.ones(2, 3))


def test_a_fork_while_values_are_brought_over_holds_up_no_child(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="") as bus:
        bus.log("x", torch.tensor(1.0))
        bus._queue.request_flush()
        while not device.threads:
            pass
        child = os.fork()
        if child == 0:
            device.ready.set()
            signal.alarm(20)
            bus.log("of child", torch.tensor(2.0))
            os._exit(0 if bus.flush(10).complete else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        device.ready.set()
    assert series(bus, "of child") == [2.0]


def test_close_returns_in_time_when_a_device_hangs(device: Device) -> None:
    metric = MulticlassAccuracy(num_classes=3, average=None)
    metric.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    device.ready.clear()
    bus = MetricBus(sinks="")
    bus.log({"loss": torch.tensor(1.0), "acc": metric})
    began = time.monotonic()
    bus.close(timeout=0.5)
    assert time.monotonic() - began < 10
    device.ready.set()
    bus.close(timeout=10)
    assert series(bus, "acc/0") == [1.0]

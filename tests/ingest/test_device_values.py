"""Device values, tested with CPU tensors on a fake device, because most machines have no GPU.

The code for CUDA is in one class, `device_values.Cuda`, and is tested in `tests/torch/test_gpu.py`.
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
from metricbus import MetricBus, ScalarRow
from metricbus._common.device_values import ACCELERATORS, as_64_bits, is_device_value, named_values
from metricbus._journal.segment_reader import JournalReader
from tests.helpers.limits import HANG_SECS


class Device:
    """A fake accelerator with CPU tensors. Transfers block until `ready` is set."""

    def __init__(self) -> None:
        self.transfers: list[int] = []  # the number of values in each
        self.threads: set[int] = set()
        self.ready = threading.Event()
        self.ready.set()
        self.fails: Exception | None = None

    def stream(self, device: Any) -> str:
        return "default stream"

    def fetch(self, device: Any, parts: Sequence[Any], streams: Iterable[Any]) -> Any:
        assert list(streams) == ["default stream"]
        self.threads.add(threading.get_ident())
        assert self.ready.wait(HANG_SECS)
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
    assert bus.dir is not None
    found: list[float] = metricbus.read(bus.dir).series(name).value.tolist()
    return found


def test_log_does_not_wait_for_the_device(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="") as bus:
        for i in range(1000):
            bus.log("loss", torch.tensor(float(i)))
        assert device.transfers == []
        device.ready.set()
    assert series(bus, "loss") == list(range(1000))


def test_calling_thread_fetches_nothing(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.log("loss", torch.tensor(1.0))
        bus.log({"a": torch.tensor(1.0), "b": 2.0})
        bus.flush()
    assert threading.get_ident() not in device.threads


def test_later_in_place_changes_are_not_logged(device: Device) -> None:
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


def test_close_writes_the_last_value(device: Device) -> None:
    bus = MetricBus(sinks="")
    bus.log("loss", torch.tensor(0.5))
    report = bus.close()
    assert report.complete
    assert series(bus, "loss") == [0.5]


def test_all_pending_values_are_fetched_in_one_transfer(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="", flush_secs=60, batch_size=60_000) as bus:
        for i in range(2000):  # more than one chunk of the collector
            bus.log("x", torch.tensor(float(i)))
        device.ready.set()
        bus.flush()
        assert device.transfers == [2000]


def test_values_of_every_dtype_match_those_on_the_host(device: Device) -> None:
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
    assert bus.dir is not None
    (row,) = (
        line.record
        for line in JournalReader(bus.dir / "journal").read()
        if isinstance(line.record, ScalarRow)
    )
    expected = {
        name: value.item() if hasattr(value, "item") else value for name, value in given.items()
    }
    expected["bool"] = 1
    assert list(row.values) == list(expected), "in the order of the mapping"
    assert str(row.values) == str(expected)


@given(st.lists(st.one_of(st.floats(width=32), st.integers(-(2**63), 2**63 - 1), st.booleans())))
def test_mixed_values_round_trip(numbers: list[float]) -> None:
    device = Device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ACCELERATORS, "cpu", device)
        with MetricBus(sinks="") as bus:
            bus.log({str(i): torch.tensor(number) for i, number in enumerate(numbers)})
    found = [series(bus, str(i))[0] for i in range(len(numbers))]
    np.testing.assert_array_equal(found, np.array([float(number) for number in numbers]))


def test_log_raises_for_a_tensor_that_is_not_a_single_number(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        for wrong in (torch.zeros(2), torch.zeros(0), torch.tensor(1j)):
            with pytest.raises(TypeError, match="'loss'"):
                bus.log("loss", wrong)
        with pytest.raises(TypeError, match="'b'"):
            bus.log({"a": torch.zeros(()), "b": torch.zeros(3)})
    assert bus.stats().logged == 0


def test_log_raises_for_a_sharded_tensor_with_a_hint() -> None:
    class ShardedTensor:
        def item(self) -> float:
            raise AssertionError("this would synchronize ranks")

        full_tensor = item

    with MetricBus(sinks="") as bus, pytest.raises(TypeError, match="full_tensor"):
        bus.log("loss", ShardedTensor())


def test_reductions_accept_device_values(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.define("loss", every=4, reduce="mean")
        bus.define("acc", on_step=False, on_epoch=True)
        for i in bus.steps(range(8)):
            bus.log("loss", torch.tensor(float(i)))
            bus.log("acc", torch.tensor(i % 2 == 0), weight=1 + i % 2)
        assert bus.end_epoch() == {"acc": pytest.approx(1 / 3)}
    assert series(bus, "loss") == [1.5, 5.5]


def test_last_returns_a_number(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.log("loss", torch.tensor(0.25))
        assert bus.last("loss") == 0.25
        assert type(bus.last("loss")) is float


def test_value_is_fetched_only_once(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        bus.log("loss", torch.tensor(0.25))
        bus.last("loss")
        bus.flush()
    assert device.transfers == [1]


def test_named_values_log_a_vector_under_several_names(device: Device) -> None:
    values = torch.arange(3.0, requires_grad=True)
    with MetricBus(sinks="") as bus:
        bus.log(named_values(["a", "b", "c"], values * 2))
    assert [series(bus, name) for name in "abc"] == [[0.0], [2.0], [4.0]]
    assert device.transfers == [3]


def test_named_values_raise_for_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="argument"):
        named_values(["a", "b"], torch.zeros(3))


def test_values_that_cannot_be_fetched_are_counted_with_a_warning(
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


def test_queue_size_limits_the_values_on_the_device(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="", queue_size=100, overflow="drop_newest") as bus:
        for i in range(1000):
            bus.log("x", torch.tensor(float(i)))
        assert bus.stats().waiting <= 100 + 256 + 1  # one chunk is with the collector
        device.ready.set()
    report = bus.stats()
    assert report.logged == 1000
    assert report.dropped >= 1000 - 357
    assert len(series(bus, "x")) == report.journalled


def test_logged_tensors_are_not_kept_alive(device: Device) -> None:
    with MetricBus(sinks="") as bus:
        weights = []
        for _ in range(100):
            weight = torch.ones(3, requires_grad=True)
            weights.append(weakref.ref(weight))
            loss = (weight**2).sum()  # with its autograd graph
            bus.log("loss", loss)
            bus.log({"loss2": loss, "n": 1})
        del loss, weight
        gc.collect()
        assert not any(ref() is not None for ref in weights)
        bus.flush()


@pytest.mark.parametrize("deferred", [True, False], ids=["accelerator", "cpu"])
def test_memory_is_constant_for_many_tensors_that_require_grad(
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


def test_many_threads_log_device_values(device: Device) -> None:
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


def test_only_accelerator_tensors_are_device_values() -> None:
    assert not is_device_value(torch.tensor(1.0)), "main memory"
    assert not is_device_value(torch.tensor(1.0, device="meta"))
    assert not is_device_value(1.0)
    assert not is_device_value(np.float32(1.0))


def fail_to_fetch_13(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the device fail to copy values to the host if 13 is among them."""
    fetch = device.fetch

    def fail_on_13(where: Any, parts: Sequence[Any], streams: Iterable[Any]) -> Any:
        if any(13.0 in part for part in parts):
            raise RuntimeError("cannot fetch 13")
        return fetch(where, parts, streams)

    monkeypatch.setattr(device, "fetch", fail_on_13)


def test_value_that_cannot_be_fetched_does_not_affect_others(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_to_fetch_13(device, monkeypatch)
    device.ready.clear()
    with MetricBus(sinks="") as bus:
        for i in range(100):
            bus.log("x", torch.tensor(float(i)))
        device.ready.set()
    assert series(bus, "x") == [i for i in range(100) if i != 13]
    assert bus.stats().dropped == 1
    assert "cannot fetch 13" in caplog.text


@pytest.mark.usefixtures("device")
def test_tensor_subclass_is_not_a_device_value() -> None:
    class Subclass(torch.Tensor):
        pass

    assert not is_device_value(torch.tensor(1.0).as_subclass(Subclass))
    assert is_device_value(torch.nn.Parameter(torch.tensor(1.0)))


@pytest.mark.usefixtures("device")
def test_log_raises_inside_vmap() -> None:
    with MetricBus(sinks="") as bus:

        def loss(x: torch.Tensor) -> torch.Tensor:
            with pytest.raises(TypeError, match="'x'"):
                bus.log("x", x.sum())
            return x.sum()

        torch.func.vmap(loss)(torch.ones(2, 3))


def test_fork_during_a_fetch_does_not_block_the_child(device: Device) -> None:
    device.ready.clear()
    with MetricBus(sinks="") as bus:
        bus.log("x", torch.tensor(1.0))
        bus._core.recorder.queue.request_flush()
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
    started = time.monotonic()
    bus.close(timeout=0.5)
    assert time.monotonic() - started < 10
    device.ready.set()
    bus.close(timeout=10)
    assert series(bus, "acc/0") == [1.0]


def test_good_values_that_wait_beside_a_failing_one_are_logged(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_fetch_13(device, monkeypatch)
    device.ready.clear()
    bus = MetricBus(sinks="")
    bus.log("good", torch.tensor(1.0))
    bus.log("bad", torch.tensor(13.0))
    bus.log("good", torch.tensor(2.0))
    device.ready.set()
    report = bus.close()
    assert series(bus, "good") == [1.0, 2.0]
    assert (report.logged, report.dropped) == (3, 1)

"""Logging values from a CUDA device; skipped if there is none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import metricbus
from metricbus import Histogram, MetricBus
from metricbus._common.media_records import HistogramRecord

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Make every call that synchronizes with the device raise, in all threads."""
    torch.zeros(1, device="cuda")  # creates the CUDA context
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def series(folder: Path, name: str) -> list[float]:
    values: list[float] = metricbus.read(folder).series(name).value.tolist()
    return values


@pytest.mark.usefixtures("no_sync")
def test_fifty_scalars_per_step_do_not_synchronize(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="csv", dir=tmp_path) as bus:
        values = torch.zeros(50, device="cuda")
        for _ in bus.steps(range(100)):
            values += 1
            bus.log({str(i): values[i] for i in range(25)})
            for i in range(25, 50):
                bus.log(str(i), values[i])
    for i in range(50):
        assert series(tmp_path / "r", str(i)) == list(range(1, 101))


def test_values_are_read_in_stream_order(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        total = torch.zeros((), device="cuda", dtype=torch.float64)
        for _ in range(200):
            torch.cuda._sleep(100_000)  # type: ignore[no-untyped-call]  # delays the device
            total += 1
            bus.log("total", total)
            total *= 1  # in place
    assert series(tmp_path / "r", "total") == list(range(1, 201))


def test_values_from_another_stream_are_correct(tmp_path: Path) -> None:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for i in range(50):
            with torch.cuda.stream(side):
                torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
                bus.log("x", torch.full((), float(i), device="cuda"))
    assert series(tmp_path / "r", "x") == list(range(50))


def test_values_of_all_dtypes_equal_item(tmp_path: Path) -> None:
    given = {
        str(dtype): torch.tensor(3, device="cuda").to(dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.float8_e4m3fn,
            torch.int64,
            torch.uint8,
            torch.bool,
        )
    }
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log(given)
    for name, value in given.items():
        assert series(tmp_path / "r", name) == [value.item()]


def test_rejects_logging_during_graph_capture(tmp_path: Path) -> None:
    value = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with (
        MetricBus(sinks="", dir=tmp_path) as bus,
        torch.cuda.graph(graph),
        pytest.raises(RuntimeError, match="replay"),
    ):
        bus.log("x", value)


def test_histograms_are_counted_on_the_device(tmp_path: Path) -> None:
    values = torch.arange(1_000_000, device="cuda", dtype=torch.float32)
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("h", Histogram(values))
    (record,) = metricbus.read(tmp_path / "r").media("h")
    assert isinstance(record, HistogramRecord)
    assert sum(record.counts) == 1_000_000

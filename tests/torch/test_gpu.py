"""What only a CUDA device can show. These are skipped where there is none."""

from __future__ import annotations

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
    """Whatever would wait for the device raises."""
    torch.zeros(1, device="cuda")  # the context is there before
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def series(folder: Path, name: str) -> list[float]:
    found: list[float] = metricbus.read(folder).series(name).value.tolist()
    return found


@pytest.mark.usefixtures("no_sync")
def test_fifty_scalars_a_step_make_no_synchronisation(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="csv", dir=tmp_path) as bus:
        values = torch.zeros(50, device="cuda")
        for _ in bus.steps(range(100)):
            values += 1
            bus.log({str(i): values[i] for i in range(25)})
            for i in range(25, 50):
                bus.log(str(i), values[i])
    for i in range(50):
        assert series(tmp_path / "r", str(i)) == list(range(1, 101))


def test_a_value_is_that_of_its_place_in_the_stream(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        total = torch.zeros((), device="cuda", dtype=torch.float64)
        for _ in range(200):
            torch.cuda._sleep(100_000)  # type: ignore[no-untyped-call]  # the device lags behind
            total += 1
            bus.log("total", total)
            total *= 1  # in place
    assert series(tmp_path / "r", "total") == list(range(1, 201))


def test_a_value_of_another_stream_is_right_too(tmp_path: Path) -> None:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for i in range(50):
            with torch.cuda.stream(side):
                torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
                bus.log("x", torch.full((), float(i), device="cuda"))
    assert series(tmp_path / "r", "x") == list(range(50))


def test_types_arrive_as_item_gives_them(tmp_path: Path) -> None:
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


def test_logging_while_a_graph_is_captured_is_refused(tmp_path: Path) -> None:
    value = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with (
        MetricBus(sinks="", dir=tmp_path) as bus,
        torch.cuda.graph(graph),
        pytest.raises(RuntimeError, match="replay"),
    ):
        bus.log("x", value)


def test_a_histogram_is_counted_there(tmp_path: Path) -> None:
    values = torch.arange(1_000_000, device="cuda", dtype=torch.float32)
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("h", Histogram(values))
    (record,) = metricbus.read(tmp_path / "r").media("h")
    assert isinstance(record, HistogramRecord)
    assert sum(record.counts) == 1_000_000

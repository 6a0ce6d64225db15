"""Correct uses of the API: `mypy --strict` reports no error and infers the asserted types.

This file is never executed; `test_api_types.py` runs mypy on it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import msgspec
import numpy as np
from numpy.typing import NDArray

import metricbus
from metricbus import (
    Audio,
    BackendUnavailableError,
    Best,
    Box,
    EarlyStopping,
    Histogram,
    History,
    Image,
    MetricBus,
    RecordsRejectedError,
    Report,
    Run,
    ScalarRow,
    Series,
    Sink,
    SinkCounts,
    Table,
    Text,
    bus,
)
from metricbus.sinks import Flushed, Rewind
from metricbus.testing import MemorySink, Point


def create_buses(folder: Path) -> None:
    MetricBus()
    MetricBus("digits", id="digits-1", config={"lr": 3e-4, "layers": [64, 10]}, tags=["baseline"])
    MetricBus(run="digits", resume=True)
    MetricBus(sinks="csv,tensorboard:logs?flush_secs=5", dir=folder)
    MetricBus(sinks=["csv", MemorySink()], dir="runs", resume="must", ranks="all")
    MetricBus(overflow="drop_oldest", delivery="process", fsync="flush", close_timeout=3)
    with MetricBus() as opened:
        assert_type(opened, MetricBus)


def log_numbers_and_mappings(array: NDArray[np.float32], row: Mapping[str, float]) -> None:
    bus.log("loss", 0.5)
    bus.log("loss", array.mean(), step=3, epoch=1, weight=32)
    bus.log("correct", True)
    bus.log({"loss": 0.5, "val": {"acc": 0.9, "n": 10}}, step=3)
    bus.log(row)


def log_media(array: NDArray[np.float32]) -> None:
    bus.log("weights", Histogram(array))
    bus.log("weights", Histogram(counts=[1, 2], edges=[0.0, 0.5, 1.0]))
    bus.log("sample", Image(array, "a seven", boxes=[Box(1, 2, 3, 4, label="seven")]))
    bus.log("samples", Image([array, array], columns=2))
    bus.log("sound", Audio(array, 16_000))
    bus.log({"note": Text("**good**"), "loss": 0.5})
    table = Table(columns=["id", "guess"], rows=[[7, "one"]])
    table.append([8, "two"])
    bus.log("errors", table)


def loops_preserve_the_types_of_their_items(pairs: list[tuple[str, int]]) -> None:
    for epoch in bus.epochs(3):
        assert_type(epoch, int)
        for name, number in bus.steps(pairs):
            assert_type(name, str)
            assert_type(number, int)
    for item in bus.steps((str(number) for number in range(3)), advance=False, progress=False):
        assert_type(item, str)
    assert_type(len(bus.steps(pairs)), int)
    assert_type(list(enumerate(bus.steps(pairs))), list[tuple[int, tuple[str, int]]])


def define_names() -> None:
    bus.define("train/*", every=10, reduce="mean")
    bus.define("val/*", on_step=False, on_epoch=True, across_ranks="mean", sinks=["csv"])
    bus.define("spread", every=10, reduce=lambda values: max(values) - min(values))
    bus.define("late", axis="tokens")
    bus.define("val/acc", best="max")
    scope = bus.scope("val").scope("seen")
    scope.log("loss", 0.5, weight=8)
    bus.phase("train").log({"loss": 0.5})
    scope.define("*", every=10, reduce="mean", across_ranks=None)


def a_run_grows(array: NDArray[np.float32]) -> None:
    bus.config.update({"lr": 0.1}, workers=4)
    bus.config.update(workers=4)
    bus.add_tags("a", "b")
    bus.scope("test").summarize("acc", array.max())
    if bus.run is not None:
        assert_type(bus.run.summary, dict[str, int | float])


def a_scope_has_the_members_of_its_bus(pairs: list[tuple[str, int]]) -> None:
    val = bus.scope("val")
    for name, _number in val.steps(pairs):
        assert_type(name, str)
    for epoch in val.epochs(3):
        assert_type(epoch, int)
    assert_type(val.step, int)
    assert_type(val.last("loss"), int | float | None)
    assert_type(val.run, Run | None)
    assert_type(val.end_epoch(), dict[str, int | float])
    assert_type(val.flush().sinks, dict[str, SinkCounts])


def return_values_are_typed() -> None:
    assert_type(bus.step, int)
    assert_type(bus.last("loss"), int | float | None)
    assert_type(bus.end_epoch(), dict[str, int | float])
    config: Mapping[str, Any] = bus.config
    assert_type(config["lr"], Any)
    assert_type(bus.dir, Path | None)
    report = bus.flush(timeout=1.5)
    assert_type(report, Report)
    assert_type(report.sinks, dict[str, SinkCounts])
    assert_type(report.sinks["csv"].delivered, int)
    assert_type(bus.close("failed").complete, bool)
    state = bus.state_dict()
    bus.load_state_dict(state)


def the_process_wide_bus_is_a_metric_bus() -> None:
    assert_type(metricbus.configure(name="digits", sinks="csv"), MetricBus)
    metricbus.configure("digits", id="digits-1", dir="runs", tags=["baseline"], resume="must")
    metricbus.configure(run="digits", sinks=[MemorySink()], ranks="all", flush_secs=1)
    metric_bus: MetricBus = bus
    metric_bus.log("loss", 0.5)


def read_a_run(folder: Path) -> None:
    history = metricbus.read(folder)
    assert_type(history, History)
    assert_type(history.run, Run)
    assert_type(history.names(), list[str])
    loss = history.series("loss")
    assert_type(loss, Series)
    assert_type(loss.step, NDArray[np.int64])
    assert_type(loss.time, NDArray[np.int64])
    assert_type(loss.value, NDArray[Any])
    step, _epoch, _time, _value = loss
    assert_type(step, NDArray[np.int64])
    assert_type(history.wide().columns, list[str])
    history.frame("polars", wide=True)
    history.plot("train/*", x="epoch", smooth=0.9, log=True).set_title("loss")
    assert_type(metricbus.deliver(folder, "csv", timeout=3), dict[str, SinkCounts])


def stop_early_and_track_the_best() -> None:
    stopping = EarlyStopping(bus, "loss_epoch", patience=3, mode="min")
    best = Best(bus.scope("val"), "acc", mode="max")
    assert_type(stopping(bus.end_epoch()), bool)
    assert_type(best(0.9), bool)
    assert_type(best.step, int | None)


def inspect_a_memory_sink() -> None:
    sink = MemorySink()
    assert_type(sink.series("loss"), list[Point])
    assert_type(sink.series("loss")[-1].value, int | float)
    assert_type(sink.records[0].values["loss"], int | float)


class LinesOptions(msgspec.Struct):
    prefix: str = ""


class LinesSink(Sink):
    """The sink of docs/writing-a-sink.md, with type annotations."""

    Options = LinesOptions
    kinds = (ScalarRow,)
    requires = ("json",)

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        self.path = folder / f"{run.id}.txt"

    def write(self, records: Sequence[ScalarRow]) -> None:
        if not self.path.parent.exists():
            raise BackendUnavailableError("the folder is gone", retry_after=2.0)
        if any(record.step < 0 for record in records):
            raise RecordsRejectedError("steps count from 0")

    def flush(self) -> Mapping[str, Any]:
        return {"length": self.path.stat().st_size}


class LateSink(Sink):
    """A sink whose backend stores rows some time after it has accepted them."""

    dedup = "position"
    process = "delivery"

    def write(self, records: Sequence[ScalarRow | Rewind]) -> None:
        self.steps = [record.step for record in records]

    def flush(self) -> Flushed:
        return Flushed({"rows": len(self.steps)}, acknowledged=0)


def pass_a_sink_object() -> None:
    MetricBus(sinks=["csv", LinesSink("lines.txt", LinesOptions(prefix="run 1: "))])

"""Incorrect uses of the API: `mypy --strict` reports each with the error code in its comment.

This file is never executed; `test_api_types.py` runs mypy on it and checks that there are no other
errors.
"""

import metricbus
from metricbus import Best, Box, EarlyStopping, Image, MetricBus, Sink, Table, bus
from metricbus.testing import MemorySink


def mistype_a_name() -> None:
    metricbus.Buss()  # E: attr-defined


def create_buses() -> None:
    MetricBus(name=3)  # E: arg-type
    MetricBus(run=3)  # E: arg-type
    MetricBus("digits", "digits-1")  # E: arg-type, call-arg
    MetricBus(sink="csv")  # E: call-arg
    MetricBus(sinks=MemorySink())  # E: arg-type
    MetricBus(sinks=[3])  # E: list-item
    MetricBus(overflow="explode")  # E: arg-type
    MetricBus(delivery="elsewhere")  # E: arg-type
    MetricBus(resume="perhaps")  # E: arg-type
    MetricBus(flush_secs="0.2")  # E: arg-type


def configure_the_process_wide_bus() -> None:
    metricbus.configure(3)  # E: arg-type
    metricbus.configure(sink="csv")  # E: call-arg
    metricbus.configure(overflow="explode")  # E: arg-type
    metricbus.configure(sinks="csv", steps=3)  # E: call-arg
    metricbus.configure(strict="yes")  # E: arg-type


def log_values() -> None:
    bus.log()  # E: call-overload
    bus.log("loss")  # E: call-overload
    bus.log(3, 0.5)  # E: call-overload
    bus.log(loss=0.5)  # E: call-overload
    bus.log({"loss": 0.5}, 0.5)  # E: call-overload
    bus.log({3: 0.5})  # E: dict-item
    bus.log("loss", 0.5, 3)  # E: call-overload
    bus.log("loss", 0.5, step="3")  # E: call-overload
    bus.log("loss", 0.5, step=1.5)  # E: call-overload
    bus.log("loss", 0.5, epoch=0.5)  # E: call-overload
    bus.log("loss", 0.5, weight="8")  # E: call-overload
    bus.log("loss", 0.5, commit=True)  # E: call-overload
    bus.scope("val").log("loss", 0.5, step="3")  # E: arg-type


def grow() -> None:
    bus.add_tags(["a", "b"])  # E: arg-type
    bus.config["lr"] = 0.1  # E: index
    bus.summarize(3, 0.5)  # E: arg-type
    bus.define("acc", best="largest")  # E: arg-type


def create_media(pixels: object) -> None:
    Image()  # E: call-arg
    Image(pixels, layout="sideways")  # E: arg-type
    Image(pixels, boxes=[(1, 2, 3, 4)])  # E: list-item
    Box(1, 2, 3)  # E: call-arg
    Table(["id"], [[7]]).append(7)  # E: arg-type


def run_loops(names: list[str]) -> None:
    bus.steps(5)  # E: arg-type
    bus.steps(names, progress="yes")  # E: arg-type
    bus.epochs(names)  # E: arg-type
    for epoch in bus.epochs(3):
        epoch.upper()  # E: attr-defined
    for name in bus.steps(names):
        name + 1  # E: operator
    bus.step = 3  # E: misc


def define_names() -> None:
    bus.define("loss", every="10")  # E: arg-type
    bus.define("loss", reduce=3)  # E: arg-type
    bus.define("loss", reduce=lambda: 0.5)  # E: arg-type
    bus.define("loss", across_ranks="median")  # E: arg-type
    bus.define(reduce="mean")  # E: call-arg


def use_a_scope() -> None:
    val = bus.scope("val")
    val.flsh()  # E: attr-defined
    val.step = 3  # E: misc
    val.epochs("3")  # E: arg-type
    val.close("done")  # E: arg-type
    val.define("loss", evry=10)  # E: call-arg
    val.define("loss", every="10")  # E: arg-type


def use_return_values() -> None:
    bus.last("loss") + 1  # E: operator
    bus.close("done")  # E: arg-type
    _ = bus.flush().sinks["csv"].lost  # E: attr-defined
    bus.config["lr"] = 0.1  # E: index


def read_a_run() -> None:
    metricbus.read()  # E: call-arg
    history = metricbus.read("runs/1")
    _ = history.series("loss").steps  # E: attr-defined
    history.frame("excel")  # E: arg-type
    history.plot("loss", smooth="0.9")  # E: arg-type
    history.plot(3)  # E: arg-type
    metricbus.deliver("runs/1", 3)  # E: arg-type


def stop_early_and_track_the_best() -> None:
    EarlyStopping("loss", patience=3)  # E: call-arg, arg-type
    EarlyStopping(bus, "loss", patience="3")  # E: arg-type
    Best(bus, "acc", mode="highest")  # E: arg-type


class NoWrite(Sink):
    """A sink without the required method."""


class SingleRecordWrite(Sink):
    """A sink whose `write` has a parameter of the wrong type."""

    def write(self, records: str) -> None: ...  # E: override


NoWrite()  # E: abstract

"""The states of a bus: what its calls do in each of them."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import metricbus
from metricbus import MetricBus, Report
from metricbus._bus.arguments import BusArguments
from metricbus._bus.core import State
from metricbus._bus.default_bus import DefaultBus


def asleep(bus: MetricBus) -> MetricBus:
    """Return a copy of the bus, as another process has it."""
    copy = MetricBus.__new__(MetricBus)
    copy._use(pickle.loads(pickle.dumps(bus._core)))
    return copy


@pytest.fixture
def open_bus(tmp_path: Path) -> Iterator[MetricBus]:
    with MetricBus("digits", id="r", dir=tmp_path, sinks="csv") as bus:
        yield bus


@pytest.fixture(params=State)
def any_bus(request: pytest.FixtureRequest, open_bus: MetricBus) -> Iterator[MetricBus]:
    """A bus in each of the states."""
    if request.param is State.IDLE:
        bus: MetricBus = DefaultBus()
    elif request.param is State.ASLEEP:
        bus = asleep(open_bus)
    elif request.param is State.DISABLED:
        bus = MetricBus(disabled=True)
    else:
        bus = open_bus
        if request.param is State.CLOSED:
            bus.close()
    assert bus._core.state is request.param
    yield bus
    bus.close()


def test_definitions_steps_and_loops_work_in_every_state(any_bus: MetricBus) -> None:
    any_bus.define("x", every=2, reduce="mean")
    any_bus.phase("val")
    any_bus.advance(3)
    assert list(any_bus.epochs(2)) == [0, 1]
    assert [any_bus.step for _ in any_bus.steps("ab")] == [4, 5]
    assert any_bus.end_epoch() == {}
    assert any_bus.sync() == {}
    assert any_bus.state_dict()["clock"]["step"] == 5


def test_counts_are_complete_in_every_state(any_bus: MetricBus) -> None:
    assert any_bus.stats().complete
    assert any_bus.flush().complete
    assert any_bus.close().complete


def test_is_on_while_there_is_a_run(any_bus: MetricBus) -> None:
    has_run = any_bus._core.state not in (State.IDLE, State.DISABLED)
    assert any_bus.is_on == has_run
    assert (any_bus.run is not None) == (any_bus.dir is not None) == has_run


def test_log_records_in_an_open_bus_and_a_copy(open_bus: MetricBus) -> None:
    copy = asleep(open_bus)
    open_bus.log("a", 1.0)
    copy.log("b", 2.0)
    copy.close()
    assert copy._core.state is State.CLOSED
    open_bus.close()
    assert metricbus.read(open_bus.dir or "").names() == ["a", "b"]


def test_log_does_nothing_in_an_idle_or_disabled_bus(tmp_path: Path) -> None:
    for bus in (DefaultBus(), MetricBus(disabled=True)):
        bus.log("x", 1.0)
        bus.log("x", object())
        assert bus._core.state is State.DISABLED
        assert bus.close() == Report()
    assert list(tmp_path.iterdir()) == []


def test_log_drops_values_in_a_closed_bus(open_bus: MetricBus) -> None:
    open_bus.close()
    open_bus.log("x", 1.0)
    assert open_bus.stats().dropped == 1


def test_log_raises_in_a_closed_strict_bus(tmp_path: Path) -> None:
    bus = MetricBus(dir=tmp_path, sinks="", strict=True)
    bus.close()
    with pytest.raises(metricbus.ClosedError):
        bus.log("x", 1.0)


def test_a_method_stored_earlier_logs_in_every_later_state(open_bus: MetricBus) -> None:
    log = open_bus.log
    log("x", 1.0)
    child = os.fork()
    if child == 0:
        log("x", 2.0)
        open_bus.close()
        os._exit(0)
    os.waitpid(child, 0)
    open_bus.close()
    assert sorted(metricbus.read(open_bus.dir or "").series("x").value) == [1.0, 2.0]


def test_bound_method_has_the_documentation_of_the_class(open_bus: MetricBus) -> None:
    assert open_bus.log.__doc__ == MetricBus.log.__doc__
    assert list(inspect.signature(open_bus.log).parameters)[:3] == ["name", "value", "step"]


@pytest.mark.parametrize("function", [MetricBus, metricbus.configure])
def test_signature_lists_all_arguments(function: Callable[..., object]) -> None:
    names = list(inspect.signature(function).parameters)
    assert names == ["name", *BusArguments.__annotations__]

"""A collector that an internal error has ended: nobody waits for it, and the training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import metricbus
from metricbus import DeliveryError, MetricBus
from metricbus._ingest.collector import Collector
from metricbus._ingest.queue import CallQueue
from metricbus._journal.dropped_counts import RunDroppedCounts
from metricbus._journal.run import RunFolder
from metricbus._journal.run_summary import summarize_run
from metricbus.testing import MemorySink
from tests.helpers.internal_errors import InternalErrors
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import run_script

FOREVER = 10 * HANG_SECS  # a test that waits this long has failed


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("seeded")


@pytest.fixture
def break_collector(
    monkeypatch: pytest.MonkeyPatch, internal_errors: InternalErrors
) -> Callable[..., None]:
    """A function that makes a step of the collector fail from now on."""

    def break_collector(step: str = "_write_calls") -> None:
        monkeypatch.setattr(Collector, step, fail)

    return break_collector


@pytest.fixture
def bus(sink: MemorySink, tmp_path: Path) -> MetricBus:
    options: dict[str, Any] = {"dir": tmp_path, "close_timeout": FOREVER, "block_secs": FOREVER}
    return MetricBus(sinks=[sink, "csv"], id="r", **options)


def test_logging_goes_on_and_every_value_is_counted(
    bus: MetricBus, break_collector: Callable[..., None]
) -> None:
    bus.log("x", 0.0)
    bus.flush()
    break_collector()
    bus.log({"x": 1.0, "y": 1.0})
    assert bus.flush(FOREVER).dropped == 2
    bus.log("x", 2.0)
    report = bus.close()
    assert (report.logged, report.journalled, report.dropped, report.waiting) == (4, 1, 3, 0)
    assert not report.complete


def test_error_is_in_the_report_and_logged_once_with_its_traceback(
    bus: MetricBus, break_collector: Callable[..., None], internal_errors: InternalErrors
) -> None:
    break_collector()
    for step in range(3):
        bus.log("x", 1.0, step=step)
        bus.flush(FOREVER)
    assert bus.close().error == "internal error of the collector: RuntimeError: seeded"
    (record,) = internal_errors.records
    assert (record.name, record.levelno) == ("metricbus.collector", logging.ERROR)
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "seeded"


def test_run_has_failed_and_keeps_what_was_written(
    bus: MetricBus, sink: MemorySink, tmp_path: Path, break_collector: Callable[..., None]
) -> None:
    bus.log("x", 0.5)
    bus.flush()
    break_collector()
    bus.log("x", 1.0)
    bus.close("finished")
    history = metricbus.read(tmp_path / "r")
    assert history.run.status == "failed"
    assert history.series("x").value.tolist() == [0.5]
    assert [point.value for point in sink.series("x")] == [0.5]
    assert (tmp_path / "r" / "csv" / "metrics.csv").read_text().count(",x,") == 1


def test_journal_has_a_lower_bound_of_the_values_that_are_missing(
    bus: MetricBus, tmp_path: Path, break_collector: Callable[..., None]
) -> None:
    break_collector()
    bus.log({"x": 1.0, "y": 2.0})
    bus.flush(FOREVER)
    bus.log("x", 3.0)
    bus.close()
    folder = RunFolder(tmp_path / "r")
    assert summarize_run(folder).dropped == RunDroppedCounts(unwritable=2)


def test_failed_run_can_be_resumed(
    bus: MetricBus, tmp_path: Path, internal_errors: InternalErrors
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collector, "_write_calls", fail)
        bus.log("x", 1.0)
        bus.close()
    with MetricBus(id="r", resume="must", dir=tmp_path, sinks="csv") as resumed:
        resumed.log("x", 2.0)
    assert resumed.stats().complete
    assert metricbus.read(tmp_path / "r").series("x").value.tolist() == [2.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda bus: bus.flush(FOREVER),
        lambda bus: bus.end_epoch(),
        lambda bus: bus.state_dict(),
        lambda bus: bus.load_state_dict(bus.state_dict()),
        lambda bus: bus.rewind(0),
        lambda bus: bus.sync(),
        lambda bus: bus.close(),
    ],
    ids=["flush", "end_epoch", "state_dict", "load_state_dict", "rewind", "sync", "close"],
)
@pytest.mark.parametrize("step", ["_write_calls", "_execute", "_close"])
def test_no_call_waits_for_a_broken_collector(
    bus: MetricBus,
    break_collector: Callable[..., None],
    call: Callable[[MetricBus], object],
    step: str,
) -> None:
    bus.define("val", on_step=False, on_epoch=True, across_ranks="mean")
    break_collector(step)
    bus.log("val", 1.0)
    call(bus)
    call(bus)
    bus.close()


def test_end_of_an_epoch_returns_no_results(
    bus: MetricBus, caplog: pytest.LogCaptureFixture, break_collector: Callable[..., None]
) -> None:
    bus.define("val", on_step=False, on_epoch=True)
    break_collector()
    bus.log("val", 1.0)
    assert bus.end_epoch() == {}
    bus.close()
    assert "will be logged" not in caplog.text


def test_call_that_waits_for_room_in_the_queue_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, internal_errors: InternalErrors
) -> None:
    def fail_when_full(*_: object, **__: object) -> NoReturn:
        assert is_full.wait(HANG_SECS)
        raise RuntimeError("seeded")

    def apply_overflow_policy(queue: Any) -> None:
        is_full.set()
        original(queue)

    is_full = threading.Event()
    original = CallQueue._apply_overflow_policy
    monkeypatch.setattr(Collector, "_write_calls", fail_when_full)
    monkeypatch.setattr(CallQueue, "_apply_overflow_policy", apply_overflow_policy)
    with MetricBus(sinks="", dir=tmp_path, queue_size=4, block_secs=FOREVER) as bus:
        for step in range(20):
            bus.log("x", float(step))
    assert (bus.stats().logged, bus.stats().dropped, bus.stats().waiting) == (20, 20, 0)


def test_strict_bus_does_not_raise_in_the_training_loop(
    tmp_path: Path, break_collector: Callable[..., None]
) -> None:
    bus = MetricBus(sinks="", dir=tmp_path, strict=True)
    break_collector()
    bus.log("x", 1.0)
    with pytest.raises(DeliveryError, match="seeded"):
        bus.flush(FOREVER)
    bus.log("x", 1.0)
    bus.log({"x": 1.0})
    with pytest.raises(DeliveryError, match="seeded"):
        bus.close()


def test_media_are_counted_as_dropped(bus: MetricBus, break_collector: Callable[..., None]) -> None:
    break_collector("_execute")
    for step in range(2):
        bus.log("h", metricbus.Histogram([1.0]), step=step)
        bus.flush(FOREVER)
    report = bus.close()
    assert (report.logged, report.dropped, report.waiting) == (2, 2, 0)


def test_error_while_the_run_is_closed_ends_the_run_as_failed(
    bus: MetricBus, tmp_path: Path, break_collector: Callable[..., None]
) -> None:
    bus.log("x", 1.0)
    break_collector("_warn_unmerged")
    assert bus.close().error is not None
    history = metricbus.read(tmp_path / "r")
    assert (history.run.status, history.series("x").value.tolist()) == ("failed", [1.0])


def test_logging_handler_that_raises_does_not_hang_the_run(
    tmp_path: Path, internal_errors: InternalErrors
) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "never logged" in record.getMessage():
                raise RuntimeError("seeded")

    logging.getLogger("metricbus").addHandler(Raising())
    with MetricBus(sinks="csv", dir=tmp_path, close_timeout=FOREVER) as bus:
        bus.define("x", axis="tokens")
        bus.log("x", 1.0)
    assert bus.stats().journalled == 1
    assert [record.threadName for record in internal_errors.records] == ["metricbus-collector"]


def test_process_ends_normally_and_its_delivery_process_delivers_the_rest(tmp_path: Path) -> None:
    code = """
        from metricbus import MetricBus
        from metricbus._ingest.collector import Collector

        def fail(*_, **__):
            raise RuntimeError("seeded")

        with MetricBus(id="r", dir=".", sinks="csv", delivery="process") as bus:
            bus.log("x", 0.5)
            bus.flush()
            Collector._write_calls = fail
            for _ in bus.steps(range(1000)):
                bus.log("x", 1.0)
        print(bus.stats().logged)
    """
    result = run_script(tmp_path, code, METRICBUS_CLOSE_TIMEOUT=str(FOREVER))
    assert (result.returncode, result.stdout) == (0, "1001\n"), result.stderr
    assert "RuntimeError: seeded" in result.stderr
    assert metricbus.read(tmp_path / "r").run.status == "failed"
    assert (tmp_path / "r" / "csv" / "metrics.csv").read_text().count(",x,") == 1


def test_unexpected_internal_error_ends_a_test_at_once(
    bus: MetricBus,
    break_collector: Callable[..., None],
    internal_errors: InternalErrors,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    internal_errors.expected = False
    break_collector()
    with pytest.raises(pytest.fail.Exception, match=r"metricbus-collector has ended .* internal"):
        bus.log("x", 1.0)
        wait_for(lambda: False)
    internal_errors.expected = True
    bus.close()

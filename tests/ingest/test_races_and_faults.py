"""Races, interrupts and faults that once lost, duplicated or delayed records."""

from __future__ import annotations

import enum
import errno
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metricbus
from metricbus import BackendUnavailableError, MetricBus, RecordsRejectedError, ScalarRow
from metricbus._bus.default_bus import DefaultBus
from metricbus._common import files
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.run import RunFolder
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def fast_thread_switching() -> Iterator[None]:
    """Make threads switch as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Disk:
    """The `os` module with a disk that can be full, for scalars only."""

    def __init__(self) -> None:
        self.is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, fd: int, data: memoryview) -> int:
        if self.is_full and b'"scalars"' in bytes(data[:40]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(fd, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(files, "os", disk)
    return disk


# The default bus


def test_stored_log_method_logs_to_the_configured_run(tmp_path: Path) -> None:
    bus, sink = DefaultBus(), MemorySink()
    log = bus.log
    bus._open(sinks=[sink], dir=tmp_path / "mine")
    for value in range(3):
        log("a", float(value))
    bus.close()
    assert [point.value for point in sink.series("a")] == [0.0, 1.0, 2.0]
    assert not Path("runs").exists()


def test_first_calls_from_many_threads_open_one_run(
    monkeypatch: pytest.MonkeyPatch, fast_thread_switching: None
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "csv")
    bus = DefaultBus()
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        for value in range(100):
            bus.log("a", float(value))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bus.close().journalled == 800
    assert len(list(Path("runs").iterdir())) == 1


# Races


def test_no_advance_is_lost_while_another_thread_logs_mappings(
    tmp_path: Path, fast_thread_switching: None
) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        running = True

        def monitor() -> None:
            while running:
                bus.log({"gpu": 1.0})

        thread = threading.Thread(target=monitor)
        bus.advance(0)  # from here on, no repeated name advances the step
        thread.start()
        for _ in range(20_000):
            bus.advance()
        running = False
        thread.join()
        assert bus.step == 20_000


def test_mapping_changed_during_the_call_is_logged_or_rejected_as_a_whole(
    tmp_path: Path, fast_thread_switching: None
) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        shared: dict[str, Any] = {"a": 1.0}
        running = True

        def change() -> None:
            while running:
                shared["a"] = object()
                shared["a"] = 1.0

        thread = threading.Thread(target=change)
        thread.start()
        accepted = 0
        for _ in range(5000):
            try:
                bus.log(shared)
            except TypeError:
                continue
            accepted += 1
        running = False
        thread.join()
    report = bus.stats()
    assert (report.journalled, report.dropped, report.waiting) == (accepted, 0, 0)


def test_interrupted_log_does_not_leave_the_collector_asleep(
    tmp_path: Path, wait_for: Wait
) -> None:
    with MetricBus(sinks="", dir=tmp_path, flush_secs=0.01) as bus:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            for _ in range(100):
                wait_for(lambda: bus._core.recorder.queue.high_water_mark == [0])
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-5)
                    for _ in range(50):
                        bus.log("a", 1.0)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    bus.log("a", 2.0)
                wait_for(lambda: not bus._core.recorder.queue.calls)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def test_calls_after_close_under_load_are_counted(tmp_path: Path) -> None:
    bus = MetricBus(sinks="", dir=tmp_path, queue_size=50, batch_size=10)
    running = True
    logged = [0] * 4

    def work(worker: int) -> None:
        while running:
            bus.log("a", 1.0)
            logged[worker] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while sum(logged) < 1000:
        pass
    bus.close()
    running = False
    for thread in threads:
        thread.join()
    bus.log("x", 1.0)
    report = bus.stats()
    assert report.waiting == 0
    assert report.journalled + report.dropped == sum(logged) + 1


# Closing


def test_signal_handler_may_close_during_close(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys, threading
        from metricbus import MetricBus, Sink
        class Slow(Sink):
            def write(self, records):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                threading.Event().wait(3)
        bus = MetricBus(sinks=[Slow()])
        signal.signal(signal.SIGTERM, lambda *a: (bus.close("killed", timeout=0.5), sys.exit(7)))
        bus.log("a", 1.0)
        bus.close(timeout=60)
        """
    )
    finished = subprocess.run([sys.executable, "-c", script], check=False, timeout=HANG_SECS)
    assert finished.returncode == 7


def test_values_held_back_by_a_full_disk_at_close_are_delivered_later(
    tmp_path: Path, disk: Disk, wait_for: Wait
) -> None:
    bus = MetricBus(sinks="csv", dir=tmp_path)
    bus.log("a", 1.0)
    bus.flush()
    disk.is_full = True
    for _ in range(10):
        bus.log("a", 2.0)
    report = bus.close(timeout=0.5)
    assert (report.journalled, report.waiting) == (1, 10)
    assert report.error is not None
    assert "No space left" in report.error
    disk.is_full = False
    wait_for(lambda: bus.stats().sinks["csv"].delivered == 11)
    assert bus.close().complete


def test_second_close_after_an_interrupt_waits_for_the_rest(tmp_path: Path, disk: Disk) -> None:
    bus = MetricBus(sinks="csv", dir=tmp_path)
    disk.is_full = True
    for _ in range(5):
        bus.log("a", 1.0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            bus.close(timeout=HANG_SECS)
    finally:
        signal.signal(signal.SIGALRM, previous)
    disk.is_full = False
    report = bus.close(timeout=HANG_SECS)
    assert report.sinks["csv"].delivered == 5
    assert report.complete


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 0, -1])
def test_any_timeout_is_accepted(tmp_path: Path, timeout: float) -> None:
    bus = MetricBus(sinks="csv?flush_secs=inf", dir=tmp_path, flush_secs=math.inf)
    bus.log("a", 1.0)
    bus.flush(timeout=timeout)
    bus.close(timeout=timeout)
    assert bus.close().journalled == 1


# Consumers


def test_backend_receives_values_after_a_long_outage(tmp_path: Path) -> None:
    class Down(MemorySink):
        """Is available after 1,100 attempts."""

        attempts = 0

        def write(self, records: Sequence[ScalarRow]) -> None:
            self.attempts += 1
            if self.attempts <= 1100:
                raise BackendUnavailableError("down", retry_after=0)
            super().write(records)

    with MetricBus(sinks=[Down()], dir=tmp_path) as bus:
        bus.log("a", 1.0)
        assert bus.flush().sinks["Down"].delivered == 1


@pytest.mark.parametrize("failure", [OSError("flush"), ValueError("flush")])
def test_failed_flush_is_retried_without_duplicates(tmp_path: Path, failure: Exception) -> None:
    class Flaky(MemorySink):
        """Fails in the first two flushes with records, and returns None from the others."""

        failures = 0

        def flush(self) -> Mapping[str, Any]:
            if self.records and self.failures < 2:
                self.failures += 1
                raise failure
            return None  # type: ignore[return-value]  # a common mistake

    sink = Flaky()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for value in range(3):
            bus.log("a", float(value))
        assert bus.flush().sinks["Flaky"].delivered == 3
    assert [point.value for point in sink.series("a")] == [0.0, 1.0, 2.0]


@pytest.mark.usefixtures("stops_consumers")
def test_values_of_child_processes_do_not_hide_pending_ones(tmp_path: Path, wait_for: Wait) -> None:
    class SelectiveSink(MemorySink):
        """Is unavailable for values of this process."""

        def write(self, records: Sequence[ScalarRow]) -> None:
            if any("own" in record.values for record in records):
                raise OSError("down")
            super().write(records)

    sink = SelectiveSink()
    bus = MetricBus(sinks=[sink], dir=tmp_path)
    code = "from metricbus import bus\nfor i in range(100): bus.log('child', float(i))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG_SECS)
    wait_for(lambda: len(sink.records) == 100)
    for _ in range(50):
        bus.log("own", 1.0)
    report = bus.close(timeout=2.5)
    assert (report.journalled, report.others) == (50, 100)
    counts = report.sinks["SelectiveSink"]
    assert (counts.delivered, counts.pending) == (100, 50)
    assert not report.complete


def test_error_without_a_text_does_not_stop_delivery(tmp_path: Path) -> None:
    class TextlessError(OSError):
        """Cannot be converted to a string."""

        def __str__(self) -> str:
            raise ValueError

    class Flaky(MemorySink):
        """Fails once with this error."""

        failed = False

        def write(self, records: Sequence[ScalarRow]) -> None:
            if not self.failed:
                self.failed = True
                raise TextlessError
            super().write(records)

    with MetricBus(sinks=[Flaky()], dir=tmp_path) as bus:
        bus.log("a", 1.0)
        assert bus.flush().sinks["Flaky"].delivered == 1


def test_sink_with_a_failing_location_does_not_break_close(tmp_path: Path) -> None:
    class SinkWithoutLocation(MemorySink):
        """Has no location."""

        @property
        def where(self) -> str:
            raise RuntimeError("lost")

    bus = MetricBus(sinks=[SinkWithoutLocation()], dir=tmp_path)
    bus.log("a", 1.0)
    assert bus.close().complete


def test_damaged_offsets_cause_redelivery_without_duplicates(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="csv,tensorboard", dir=tmp_path) as bus:
        for step in range(10):
            bus.log("a", float(step), step=step)
    folder = RunFolder(tmp_path / "r")
    for path in folder.offsets.iterdir():
        path.write_bytes(b"\0" * 10)
    for url in ("csv", "tensorboard"):
        consumer = Consumer(folder, spec_of(parse_sink(url)))
        consumer.end("finished")
        consumer.run()
        assert consumer.tally().delivered == 10
    assert len((folder.path / "csv" / "metrics.csv").read_text().splitlines()) == 11
    assert tensorboard_steps(folder.path / "tensorboard", "a") == list(range(10))


def test_failed_open_leaks_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("a", 1.0)
    before = len(os.listdir("/proc/self/fd"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.AppendFile, "append", full)
    for url in ("csv", "tensorboard"):
        spec = spec_of(parse_sink(url))
        for _ in range(5):
            with pytest.raises(OSError, match="No space"):
                spec.sink.open(bus.run, tmp_path / "r", {})  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# TensorBoard


def tensorboard_steps(folder: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_row_rejected_by_tensorboard_does_not_move_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metricbus.sinks.tensorboard.event_file import EventBuilder

    make = EventBuilder.__call__

    def picky(self: EventBuilder, row: ScalarRow) -> bytes:
        if "bad" in row.values:
            raise RecordsRejectedError("bad")
        return make(self, row)

    monkeypatch.setattr(EventBuilder, "__call__", picky)
    with MetricBus(sinks="tensorboard", dir=tmp_path, flush_secs=60) as bus:
        for step in range(10):
            bus.log("a", 1.0, step=step)
        bus.log("bad", 1.0, step=20)
        bus.log("a", 1.0, step=30)
    assert bus.dir is not None
    assert tensorboard_steps(bus.dir / "tensorboard", "a") == [*range(10), 30]
    assert list((bus.dir / "tensorboard").glob("late-*")) == []
    assert bus.stats().sinks["tensorboard"].rejected == 1


def test_sub_run_that_initially_cannot_be_created_does_not_move_other_rows(tmp_path: Path) -> None:
    with MetricBus(sinks="tensorboard", dir=tmp_path) as bus:
        bus.log("a", 0.0, step=0)
        bus.flush()
        assert bus.dir is not None
        obstacle = bus.dir / "tensorboard" / "late-1"
        obstacle.write_text("a file")
        for step in range(1, 11):
            bus.log("a", float(step), step=step)
        bus.log("a", -1.0, step=5)
        assert bus.flush(timeout=1).sinks["tensorboard"].pending > 0
        obstacle.unlink()
    assert tensorboard_steps(bus.dir / "tensorboard", "a") == list(range(11))
    assert tensorboard_steps(obstacle, "a") == [5]


def test_hyperparameters_are_written_although_the_first_open_failed(
    tmp_path: Path,
) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path, config={"lr": 0.1}) as bus:
        bus.log("_hparams_/mine", 1.0, step=0)
    spec = spec_of(parse_sink("tensorboard"))
    assert bus.run is not None
    spec.sink.open(bus.run, tmp_path / "r", {})
    (file,) = (tmp_path / "r" / "tensorboard").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"_hparams_") - 30])  # truncated after the version
    for _ in range(2):  # the second time from the start, because the offsets are gone
        for path in (tmp_path / "r" / "offsets").iterdir():
            path.unlink()
        consumer = Consumer(RunFolder(tmp_path / "r"), spec_of(parse_sink("tensorboard")))
        consumer.end("finished")
        consumer.run()
    assert file.read_bytes().count(b"session_start_info") == 1
    assert tensorboard_steps(tmp_path / "r" / "tensorboard", "_hparams_/mine") == [0]


# Unusual values


def test_step_never_exceeds_64_bits(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0, step=2**63 - 1)
        for _ in range(3):
            bus.log("x", 1.0)
        with pytest.raises(ValueError, match=r"would exceed 2\*\*63-1"):
            bus.advance()
    assert metricbus.read(tmp_path / "r").series("x").step.tolist() == [2**63 - 1] * 4


def test_string_enum_is_the_same_name_in_every_call_form(tmp_path: Path) -> None:
    class Color(str, enum.Enum):  # noqa: UP042 - its str() is not its text
        RED = "red"

    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log({Color.RED: 1.0}, step=0)
        bus.log({Color.RED: 1}, step=1)
        bus.log(Color.RED, 1.0, step=2)
    assert sink.names() == ["red"]


def test_string_subclass_is_accepted_as_a_name(tmp_path: Path) -> None:
    class Safe(str):
        __slots__ = ()

        def __str__(self) -> str:
            return self

    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log(Safe("a"), 1.0)
    assert sink.names() == ["a"]


def test_canonical_sink_url_has_no_password() -> None:
    url = parse_sink("wandb://user:hunter2@host/x")
    assert "hunter2" not in url.canonical
    assert "host/x" in url.canonical

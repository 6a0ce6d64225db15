"""A sink that fails, is slow or hangs delays neither the other sinks nor the training."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import metricbus
from metricbus import (
    BackendUnavailableError,
    MetricBus,
    RecordsRejectedError,
    Report,
    ScalarRow,
    Sink,
)
from metricbus._delivery.cursor import DeliveryCursor
from metricbus._journal.run import Run
from metricbus.sinks import Flushed
from metricbus.testing import MemorySink
from tests.helpers.internal_errors import InternalErrors
from tests.helpers.limits import HANG_SECS

N = 3000


class Raises(Sink):
    """Always raises, like a permanently broken backend."""

    def write(self, records: Sequence[ScalarRow]) -> None:
        raise KeyError("broken")


class Unreachable(Sink):
    """Is always unavailable, like a server that is down."""

    def write(self, records: Sequence[ScalarRow]) -> None:
        raise BackendUnavailableError("down")


class VerySlow(Sink):
    """Takes 5 seconds for each batch."""

    def write(self, records: Sequence[ScalarRow]) -> None:
        threading.Event().wait(5)


class Hangs(Sink):
    """Blocks in the given method until it is released."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.hanging_method = method
        self.released = threading.Event()

    def _maybe_hang(self, method: str) -> None:
        if method == self.hanging_method:
            self.released.wait()

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        self._maybe_hang("open")

    def write(self, records: Sequence[ScalarRow]) -> None:
        self._maybe_hang("write")

    def flush(self) -> Mapping[str, Any]:
        self._maybe_hang("flush")
        return {}

    def close(self, status: str) -> None:
        self._maybe_hang("close")


def counts_add_up(report: Report) -> bool:
    return all(
        report.journalled == sink.delivered + sink.rejected + sink.filtered + sink.pending
        for sink in report.sinks.values()
    )


BAD_SINKS: dict[str, Callable[[], Sink]] = {
    "raises": Raises,
    "unreachable": Unreachable,
    "very slow": VerySlow,
    "hangs in open": lambda: Hangs("open"),
    "hangs in write": lambda: Hangs("write"),
    "hangs in flush": lambda: Hangs("flush"),
    "hangs in close": lambda: Hangs("close"),
}


@pytest.fixture(params=BAD_SINKS)
def bad_sink(request: pytest.FixtureRequest, stops_consumers: None) -> Iterator[Sink]:
    sink = BAD_SINKS[request.param]()
    yield sink
    if isinstance(sink, Hangs):
        sink.released.set()


def test_a_bad_sink_delays_neither_other_sinks_nor_close(tmp_path: Path, bad_sink: Sink) -> None:
    good_sink = MemorySink()
    bus = MetricBus(sinks=[bad_sink, good_sink, "csv"], dir=tmp_path)
    for step in range(N):
        bus.log("x", float(step), step=step)
    started = time.monotonic()
    report = bus.close(timeout=2)
    assert time.monotonic() - started < 5, "close took longer than its timeout"
    assert [point.value for point in good_sink.series("x")] == list(range(N))
    assert report.logged == report.journalled == N
    assert report.sinks["csv"].delivered == report.sinks["MemorySink"].delivered == N
    assert counts_add_up(report)


def test_a_sink_that_always_raises_rejects_every_value_and_reports_the_error(
    tmp_path: Path,
) -> None:
    with MetricBus(sinks=[Raises()], dir=tmp_path) as bus:
        for step in range(50):
            bus.log({"a": 1.0, "b": 2.0}, step=step)
    counts = bus.stats().sinks["Raises"]
    assert (counts.rejected, counts.pending) == (100, 0)
    assert counts.error == "KeyError: 'broken'"


def test_rejects_only_the_bad_records_of_a_batch(tmp_path: Path) -> None:
    class RejectsNegative(MemorySink):
        """Rejects negative numbers."""

        def write(self, records: Sequence[ScalarRow]) -> None:
            if any(value < 0 for record in records for value in record.values.values()):
                raise RecordsRejectedError("negative")
            super().write(records)

    sink = RejectsNegative()
    with MetricBus(sinks=[sink], dir=tmp_path, flush_secs=60) as bus:
        for step in range(1000):
            bus.log("x", -1.0 if step in (7, 8, 500, 999) else 1.0, step=step)
    counts = bus.stats().sinks["RejectsNegative"]
    assert (counts.delivered, counts.rejected, counts.pending) == (996, 4, 0)
    steps = [point.step for point in sink.series("x")]
    assert steps == [step for step in range(1000) if step not in (7, 8, 500, 999)]


def test_retries_during_an_outage_and_logs_its_start_and_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Flaky(MemorySink):
        """Is down for the first three attempts."""

        attempts = 0

        def write(self, records: Sequence[ScalarRow]) -> None:
            self.attempts += 1
            if self.attempts <= 3:
                raise BackendUnavailableError("down", retry_after=0.01)
            super().write(records)

    sink = Flaky()
    with caplog.at_level(logging.WARNING), MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("x", 1.0)
        report = bus.flush()
    assert report.sinks["Flaky"].delivered == 1
    assert report.sinks["Flaky"].error is None
    assert [point.value for point in sink.series("x")] == [1.0]
    messages = [record.message for record in caplog.records]
    assert messages == [
        "sink Flaky: delivery delayed, will retry: BackendUnavailableError: down",
        "sink Flaky: delivery has recovered",
    ]


def test_a_sink_that_opens_late_receives_everything(tmp_path: Path) -> None:
    class LateOpener(MemorySink):
        """Can be opened at the third attempt."""

        attempts = 0

        def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
            self.attempts += 1
            if self.attempts < 3:
                raise BackendUnavailableError("not yet", retry_after=0.01)
            super().open(run, folder, state)

    sink = LateOpener()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", float(step))
        assert bus.flush().sinks["LateOpener"].delivered == 10


def test_writes_batches_instead_of_single_records(tmp_path: Path) -> None:
    class Counting(MemorySink):
        """Counts the calls of `write`."""

        writes = 0

        def write(self, records: Sequence[ScalarRow]) -> None:
            self.writes += 1
            super().write(records)

    sink = Counting()
    with MetricBus(sinks=[sink], dir=tmp_path, flush_secs=60, batch_size=20_000) as bus:
        for step in range(10_000):
            bus.log("x", 1.0, step=step)
    assert len(sink.records) == 10_000
    assert sink.writes <= 50


@pytest.mark.parametrize(
    "returned",
    [{"n": object()}, [1], 7, Flushed({}, "3")],  # type: ignore[arg-type]
    ids=["object", "list", "int", "text"],
)
def test_a_state_that_cannot_be_saved_is_an_error_of_the_sink(
    tmp_path: Path, returned: Any, stops_consumers: None
) -> None:
    class Odd(MemorySink):
        def flush(self) -> Any:
            return returned

    bus = MetricBus(sinks=[Odd()], dir=tmp_path)
    bus.log("x", 1.0)
    report = bus.close(timeout=0.5)
    (counts,) = report.sinks.values()
    assert (counts.delivered, counts.pending) == (0, 1)
    assert "flush() must return a mapping that JSON can represent" in (counts.error or "")


def test_a_location_that_is_no_text_does_not_damage_the_progress(tmp_path: Path) -> None:
    class NoPlace(MemorySink):
        where = None  # type: ignore[assignment]
        command = Path("x")  # type: ignore[assignment]

    with MetricBus(id="r", sinks=[NoPlace()], dir=tmp_path) as bus:
        bus.log("x", 1.0)
    (counts,) = metricbus.deliver(tmp_path / "r", [NoPlace()]).values()
    assert (counts.delivered, counts.where, counts.command) == (1, "", "x")


@pytest.mark.parametrize("transition", ["acquire", "opened", "read", "intend", "flushed", "close"])
def test_an_internal_error_of_the_delivery_stops_it_at_once_and_appears_in_the_report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    internal_errors: InternalErrors,
    transition: str,
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(DeliveryCursor, transition, broken)
    bus = MetricBus(sinks=["csv"], dir=tmp_path)
    bus.log("x", 1.0)
    report = bus.close(timeout=HANG_SECS)
    assert report.sinks["csv"].error == "TypeError: a bug"
    assert report.sinks["csv"].pending == (0 if transition == "close" else 1)
    (record,) = [record for record in caplog.records if record.name == "metricbus.delivery"]
    assert record.message == "sink csv: delivery stopped: TypeError: a bug"
    assert internal_errors.records == [record]


def test_the_bus_opens_although_no_thread_can_be_started_for_a_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def start_few(thread: threading.Thread) -> None:
        if thread.name.startswith("metricbus-csv"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_few)
    sink = MemorySink()
    with MetricBus(sinks=["csv", sink], dir=tmp_path) as bus:
        bus.log("x", 1.0)
    counts = bus.stats().sinks
    assert counts["csv"].error == "OSError: cannot start its thread: can't start new thread"
    assert (counts["csv"].pending, counts["MemorySink"].pending) == (1, 0)


def test_masks_secrets_in_the_errors_of_a_backend(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Leaky(Sink):
        """Includes its whole address in its errors."""

        def write(self, records: Sequence[ScalarRow]) -> None:
            raise RecordsRejectedError("POST http://me:hunter2@host/api?token=hunter2 failed")

    with MetricBus(sinks=[Leaky()], dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert "http://***@host/api?token=***" in str(bus.stats())
    assert "hunter2" not in str(bus.stats()) + caplog.text


def test_an_idle_bus_uses_no_processor_time(tmp_path: Path) -> None:
    with MetricBus(sinks=["csv", MemorySink()], dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        before = time.process_time()
        threading.Event().wait(2)
        assert time.process_time() - before < 0.1


@pytest.mark.usefixtures("stops_consumers")
def test_a_deleted_run_folder_is_logged_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MetricBus(sinks="csv", dir=tmp_path)
    bus.log("x", 1.0)
    bus.flush()
    assert bus.dir is not None
    shutil.rmtree(bus.dir)
    bus.log("x", 2.0)
    report = bus.close(timeout=1)
    assert report.sinks["csv"].pending == 1
    assert "is missing" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_a_script_with_a_hanging_sink_ends_by_its_deadline(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import threading
            from metricbus import MetricBus, Sink

            class Hangs(Sink):
                def write(self, records):
                    threading.Event().wait()

            bus = MetricBus(id="r", sinks=[Hangs(), "csv"], close_timeout=1)
            bus.log("x", 1.0)
            """
        )
    )
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        check=True,
        timeout=HANG_SECS,
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 20
    assert "Sink Hangs: 0 values rejected, 1 not delivered" in process.stderr
    assert "x,1.0" in (tmp_path / "runs" / "r" / "csv" / "metrics.csv").read_text()


def test_memory_does_not_grow_while_a_sink_is_down(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        from metricbus import MetricBus, Sink, BackendUnavailableError

        class Down(Sink):
            def write(self, records):
                raise BackendUnavailableError("no answer")

        def kilobytes():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

        def log(values):
            for step in range(values):
                bus.log("x", step / 7, step=step)
            while bus.stats().waiting:
                pass

        bus = MetricBus(id="r", dir=".", sinks=[Down()], close_timeout=0)
        log(50_000)
        before = kilobytes()
        log(400_000)
        print(kilobytes() - before, bus.stats().sinks["Down"].pending)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=True,
    )
    growth, pending = map(int, process.stdout.split())
    assert pending == 450_000
    assert growth < 16_000, f"{growth} KB for 400,000 values"


def test_all_threads_are_daemons(tmp_path: Path) -> None:
    with MetricBus(sinks="csv,logging", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        threads = [t for t in threading.enumerate() if t.name.startswith("metricbus")]
        assert len(threads) >= 3
        assert all(thread.daemon for thread in threads)

"""One sink that fails, crawls or hangs: the others have everything, and nobody waits for it."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from metricbus import MetricBus, Rejected, Report, Scalars, Sink, Unavailable
from metricbus._journal.run import Run
from metricbus.testing import MemorySink

N = 3000


class Raises(Sink):
    """Raises always, as a backend does that is broken for good."""

    def write(self, records: Sequence[Scalars]) -> None:
        raise KeyError("broken")


class Unreachable(Sink):
    """Cannot be had, as a server that is down."""

    def write(self, records: Sequence[Scalars]) -> None:
        raise Unavailable("down")


class Crawls(Sink):
    """Takes 5 seconds a batch."""

    def write(self, records: Sequence[Scalars]) -> None:
        threading.Event().wait(5)


class Hangs(Sink):
    """Blocks for ever, in the method that it is told."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.hangs_in = where

    def _maybe(self, where: str) -> None:
        if where == self.hangs_in:
            threading.Event().wait()

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        self._maybe("open")

    def write(self, records: Sequence[Scalars]) -> None:
        self._maybe("write")

    def flush(self) -> Mapping[str, Any]:
        self._maybe("flush")
        return {}

    def close(self, status: str) -> None:
        self._maybe("close")


def adds_up(report: Report) -> bool:
    return all(
        report.journalled == sink.delivered + sink.rejected + sink.filtered + sink.pending
        for sink in report.sinks.values()
    )


@pytest.fixture(params=["raises", "unreachable", "crawls", "open", "write", "flush", "close"])
def bad(request: pytest.FixtureRequest) -> Sink:
    known: dict[str, Callable[[], Sink]] = {
        "raises": Raises,
        "unreachable": Unreachable,
        "crawls": Crawls,
    }
    return known[request.param]() if request.param in known else Hangs(request.param)


def test_beside_a_bad_sink_the_others_have_everything_and_close_is_in_time(
    tmp_path: Path, bad: Sink
) -> None:
    good = MemorySink()
    bus = MetricBus(sinks=[bad, good, "csv"], dir=tmp_path)
    for step in range(N):
        bus.log("x", float(step), step=step)
    started = time.monotonic()
    report = bus.close(timeout=2)
    assert time.monotonic() - started < 5, "the deadline was 2"
    assert [point.value for point in good.series("x")] == list(range(N))
    assert report.logged == report.journalled == N
    assert report.sinks["csv"].delivered == report.sinks["MemorySink"].delivered == N
    assert adds_up(report)


def test_a_sink_that_always_raises_has_every_value_rejected_with_the_reason(
    tmp_path: Path,
) -> None:
    with MetricBus(sinks=[Raises()], dir=tmp_path) as bus:
        for step in range(50):
            bus.log({"a": 1.0, "b": 2.0}, step=step)
    counts = bus.stats().sinks["Raises"]
    assert (counts.rejected, counts.pending) == (100, 0)
    assert counts.error == "KeyError: 'broken'"


def test_one_bad_record_does_not_poison_its_batch(tmp_path: Path) -> None:
    class Picky(MemorySink):
        """Takes everything but negative numbers."""

        def write(self, records: Sequence[Scalars]) -> None:
            if any(value < 0 for record in records for value in record.values.values()):
                raise Rejected("negative")
            super().write(records)

    sink = Picky()
    with MetricBus(sinks=[sink], dir=tmp_path, flush_secs=60) as bus:
        for step in range(1000):
            bus.log("x", -1.0 if step in (7, 8, 500, 999) else 1.0, step=step)
    counts = bus.stats().sinks["Picky"]
    assert (counts.delivered, counts.rejected, counts.pending) == (996, 4, 0)
    steps = [point.step for point in sink.series("x")]
    assert steps == [step for step in range(1000) if step not in (7, 8, 500, 999)]


def test_an_outage_is_retried_told_once_and_its_end_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Flaky(MemorySink):
        """Is down for the first three attempts."""

        attempts = 0

        def write(self, records: Sequence[Scalars]) -> None:
            self.attempts += 1
            if self.attempts <= 3:
                raise Unavailable("down", retry_after=0.01)
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
        "sink Flaky: delivery delayed, will retry: Unavailable: down",
        "sink Flaky: delivery has recovered",
    ]


def test_a_sink_that_cannot_be_opened_at_first_misses_nothing(tmp_path: Path) -> None:
    class LateOpener(MemorySink):
        """Its server is there at the third attempt only."""

        attempts = 0

        def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
            self.attempts += 1
            if self.attempts < 3:
                raise Unavailable("not yet", retry_after=0.01)
            super().open(run, folder, state)

    sink = LateOpener()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", float(step))
        assert bus.flush().sinks["LateOpener"].delivered == 10


def test_a_sink_gets_batches_not_single_records(tmp_path: Path) -> None:
    class Counting(MemorySink):
        """Counts how often it was written to."""

        writes = 0

        def write(self, records: Sequence[Scalars]) -> None:
            self.writes += 1
            super().write(records)

    sink = Counting()
    with MetricBus(sinks=[sink], dir=tmp_path, flush_secs=60, batch_size=20_000) as bus:
        for step in range(10_000):
            bus.log("x", 1.0, step=step)
    assert len(sink.records) == 10_000
    assert sink.writes <= 50


def test_secrets_in_a_backends_errors_are_masked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Leaky(Sink):
        """Puts its whole address into its errors."""

        def write(self, records: Sequence[Scalars]) -> None:
            raise Rejected("POST http://me:hunter2@host/api?token=hunter2 failed")

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


def test_a_run_folder_that_is_deleted_is_told_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MetricBus(sinks="csv", dir=tmp_path)
    bus.log("x", 1.0)
    bus.flush()
    assert bus.folder is not None
    shutil.rmtree(bus.folder)
    bus.log("x", 2.0)
    report = bus.close(timeout=1)
    assert report.sinks["csv"].pending == 1
    assert "is missing" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_a_script_with_a_sink_that_hangs_ends_by_its_deadline(tmp_path: Path) -> None:
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
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 20
    assert "Sink Hangs: 0 values rejected, 1 not delivered" in done.stderr
    assert "x,1.0" in (tmp_path / "runs" / "r" / "csv" / "metrics.csv").read_text()


def test_memory_does_not_grow_while_a_sink_is_down(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        from metricbus import MetricBus, Sink, Unavailable

        class Down(Sink):
            def write(self, records):
                raise Unavailable("no answer")

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
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    grown, pending = map(int, done.stdout.split())
    assert pending == 450_000
    assert grown < 16_000, f"{grown} KB for 400,000 values"


def test_all_threads_are_daemons_so_that_none_holds_up_the_end(tmp_path: Path) -> None:
    with MetricBus(sinks="csv,logging", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        ours = [one for one in threading.enumerate() if one.name.startswith("metricbus")]
        assert len(ours) >= 3
        assert all(thread.daemon for thread in ours)

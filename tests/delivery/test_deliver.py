"""`deliver()` for existing runs, and leases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metricbus
from metricbus import ConfigError, JournalError, MetricBus, RecordsLostError, ScalarRow, deliver
from metricbus._common.files import AppendFile, create_file
from metricbus._common.processes import ProcessId, this_process
from metricbus._delivery import lease
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.lease import Lease, LeaseHeld, LeaseLost
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS
from tests.helpers.wandb_reader import wandb_files, wandb_rows


def script(folder: Path, code: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=folder)


KILLED = """
    import os, signal
    from metricbus import MetricBus
    from metricbus._ingest.commands import Flush
    bus = MetricBus(id="r", sinks="csv?flush_secs=60", dir=".")
    for step in range(500):
        bus.log("x", float(step), step=step)
    bus._core.session._collector.submit_and_wait(Flush(), 20)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run whose process was killed after 500 values."""
    assert script(tmp_path, KILLED).wait(HANG_SECS) == -signal.SIGKILL
    return tmp_path / "r"


def csv_values(folder: Path) -> list[float]:
    lines = (folder / "csv" / "metrics.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[4]) for line in lines]


def test_delivers_a_killed_run_to_its_configured_sinks_and_marks_it(killed: Path) -> None:
    counts = deliver(killed, timeout=HANG_SECS)
    assert {name: sink.delivered for name, sink in counts.items()} == {"csv": 500}
    assert csv_values(killed) == [float(step) for step in range(500)]
    assert metricbus.read(killed).run.status == "killed"
    assert metricbus.read(killed).run.ended is not None


def test_delivering_twice_repeats_no_value_in_any_sink(killed: Path) -> None:
    sinks = "csv,tensorboard,wandb"
    for _ in range(2):
        counts = deliver(killed, sinks, timeout=HANG_SECS)
        assert all((sink.delivered, sink.pending) == (500, 0) for sink in counts.values())
        assert all(sink.where for sink in counts.values())
    assert len(csv_values(killed)) == 500
    assert len(list(wandb_rows(killed))) == 500
    assert len(wandb_files(killed)) == 1, "a second run was created although nothing was new"


def test_delivers_a_finished_run_to_other_sinks(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    sink = MemorySink()
    deliver(tmp_path / "r", [sink], timeout=HANG_SECS)
    assert [point.value for point in sink.series("x")] == [1.0]
    assert sink.status == "finished"


def test_delivers_a_live_run_incrementally(
    tmp_path: Path,
) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        assert deliver(tmp_path / "r", "csv", timeout=HANG_SECS)["csv"].delivered == 1
        bus.log("x", 2.0)
    assert deliver(tmp_path / "r", "csv", timeout=HANG_SECS)["csv"].delivered == 2
    assert csv_values(tmp_path / "r") == [1.0, 2.0]
    assert json.loads((tmp_path / "r" / "csv" / "run.json").read_bytes())["status"] == "finished"


def test_follow_ends_with_the_run(
    tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        command = [sys.executable, "-m", "metricbus", "deliver", "r", "--sinks", "csv", "--follow"]
        follower = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        wait_for((tmp_path / "r" / "csv" / "metrics.csv").exists)
        wait_for(lambda: csv_values(tmp_path / "r") == [1.0])
        bus.log("x", 2.0)
    output, _ = follower.communicate(timeout=HANG_SECS)
    assert follower.returncode == 0
    assert "csv" in output
    assert csv_values(tmp_path / "r") == [1.0, 2.0]


def test_raises_config_error_without_any_sink(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=["logging", MemorySink()], dir=tmp_path) as bus:
        bus.log("x", 1.0)
    with pytest.raises(ConfigError, match="has no configured sink to deliver to"):
        deliver(tmp_path / "r")


def test_raises_journal_error_if_the_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="is not a run folder"):
        deliver(tmp_path, "csv")


@pytest.mark.usefixtures("stops_consumers")
def test_requires_the_full_url_for_sinks_with_secrets(tmp_path: Path) -> None:
    bus = MetricBus(id="r", sinks="mlflow+http://me:hunter2@127.0.0.1:9", dir=tmp_path)
    bus.close(timeout=0.1)
    with pytest.raises(ConfigError, match="does not store secrets"):
        deliver(tmp_path / "r")


# Leases


def test_only_one_process_holds_a_lease(tmp_path: Path) -> None:
    first, second = Lease(tmp_path / "csv"), Lease(tmp_path / "csv")
    assert first.acquire() == 1
    with pytest.raises(LeaseHeld, match=f"already being delivered by process {os.getpid()} on"):
        second.acquire()
    first.release()
    assert second.acquire(above=5) == 6


def test_the_lease_of_a_dead_process_is_taken_over_with_a_higher_number(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        from metricbus._delivery.lease import Lease
        Lease(Path("csv")).acquire(above=7)
    """
    assert script(tmp_path, code).wait(HANG_SECS) == 0
    assert Lease(tmp_path / "csv").acquire() == 9


def test_a_stale_lease_is_taken_over_and_its_holder_notices(
    tmp_path: Path,
) -> None:
    first, second = Lease(tmp_path / "csv"), Lease(tmp_path / "csv")
    first.acquire()
    (file,) = tmp_path.iterdir()
    os.utime(file, (time.time() - 100, time.time() - 100))
    second.acquire()
    with pytest.raises(LeaseLost):
        first.check()
    second.check()


def test_a_process_id_includes_the_start_time() -> None:
    here = this_process()
    assert here.is_alive()
    assert not ProcessId(here.host, here.pid, here.started + 1).is_alive()
    assert ProcessId("elsewhere", here.pid).is_alive()


def test_a_zombie_process_counts_as_dead(
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    child = subprocess.Popen(["true"])
    wait_for(lambda: not ProcessId(os.uname().nodename, child.pid).is_alive())
    child.wait()


def test_a_frozen_process_does_not_write_after_its_lease_was_taken_over(
    killed: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    """The process is stopped while it delivers, loses its lease, and is continued."""
    slow = """
        import sys, time
        from pathlib import Path
        import metricbus
        from metricbus.sinks.csv.sink import CsvSink
        write = CsvSink.write
        def write_slowly(self, records):
            write(self, records)
            Path("written").touch()
            time.sleep(0.2)
        CsvSink.write = write_slowly
        metricbus.deliver("r", "csv?batch_size=20", timeout=40)
    """
    frozen = script(killed.parent, slow)
    wait_for((killed.parent / "written").exists)
    os.kill(frozen.pid, signal.SIGSTOP)
    (file,) = (killed / "offsets").glob("[!.]*.lease-*")
    os.utime(file, (time.time() - 100, time.time() - 100))
    counts = deliver(killed, "csv?batch_size=20", timeout=HANG_SECS)
    assert next(iter(counts.values())).delivered == 500
    os.kill(frozen.pid, signal.SIGCONT)
    assert frozen.wait(HANG_SECS) == 0
    assert csv_values(killed) == [float(step) for step in range(500)]


def test_delivers_to_a_configured_server(tmp_path: Path, mlflow_server: str) -> None:
    url = mlflow_server.replace("http://", "mlflow+http://") + "?experiment=later"
    bus = MetricBus(id="r", sinks=f"csv,{url}", dir=tmp_path, delivery="off")
    bus.log("x", 1.0)
    bus.close()
    counts = deliver(tmp_path / "r", timeout=HANG_SECS)
    assert {name: sink.delivered for name, sink in counts.items()} == {"csv": 1, url: 1}


def test_refuses_another_selection_of_rows_at_the_same_location(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="csv", dir=tmp_path) as bus:
        bus.log({"loss": 1.0, "acc": 2.0})
    counts = deliver(tmp_path / "r", "csv?include=loss", timeout=HANG_SECS)["csv?include=loss"]
    assert "give csv?include=loss another location" in str(counts.error)
    assert (counts.delivered, counts.pending) == (0, 2)
    assert csv_values(tmp_path / "r") == [1.0, 2.0]


def test_a_relative_location_refers_to_the_original_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = MetricBus(id="r", sinks="csv:out,tensorboard:out", dir=tmp_path, delivery="off")
    bus.log("x", 1.0)
    bus.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    deliver(tmp_path / "r", timeout=HANG_SECS)
    assert (tmp_path / "out" / "r" / "metrics.csv").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_does_not_write_to_the_folder_of_another_run_with_the_same_id(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with MetricBus(id="r", sinks="csv:out", dir=tmp_path / name) as bus:
            bus.log(name, 1.0)
    assert "belongs to another run" in str(bus.stats().sinks["csv:out"].error)
    assert ",one,1.0," in (tmp_path / "out" / "r" / "metrics.csv").read_text()


DIES = """
    import os, signal
    from metricbus import MetricBus
    bus = MetricBus()
    bus.define("c/*", on_step=False, on_epoch=True)
    bus.log({"c/a": 1.0, "c/b": 2.0})
    bus._core.session._collector._partials_written_at -= 60
    bus.flush()
    while b'"open"' not in (bus.dir / "journal" / "0002.jsonl").read_bytes():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_delivers_the_partial_rows_of_a_worker_that_died_after_the_run_ended(
    tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path)
    bus.log("x", 5.0)
    stays_alive = DIES.replace("os.kill(os.getpid(), signal.SIGKILL)", "signal.pause()")
    worker = script(tmp_path, stays_alive)
    segment = tmp_path / "r" / "journal" / "0002.jsonl"
    wait_for(lambda: segment.exists() and b'"open"' in segment.read_bytes())
    bus.close()
    worker.kill()
    worker.wait(HANG_SECS)
    counts = deliver(tmp_path / "r", timeout=HANG_SECS)["csv"]
    assert (counts.delivered, counts.pending) == (3, 0)
    assert csv_values(tmp_path / "r") == [5.0, 1.0, 2.0]


def test_repeats_partial_rows_in_the_original_order(tmp_path: Path) -> None:
    """A delivery is killed after it has written them, before the run continues."""
    first = MetricBus(id="r", sinks="", dir=tmp_path)
    first.log("x", 0.0, step=0)
    first.flush()
    command = [sys.executable, "-c", textwrap.dedent(DIES)]
    subprocess.run(command, cwd=tmp_path, timeout=HANG_SECS, check=False)
    first.close()
    killed = """
        import os, signal
        import metricbus
        from metricbus._delivery.cursor import DeliveryCursor
        flushed = DeliveryCursor.flushed
        def die(self, state):
            if self.batch.rows[0].line < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return flushed(self, state)
        DeliveryCursor.flushed = die
        metricbus.deliver("r", "tensorboard", timeout=30)
    """
    assert script(tmp_path, killed).wait(HANG_SECS) == -signal.SIGKILL
    segment_writer = SegmentWriter(tmp_path / "r" / "journal", "r")
    segment_writer.append([ScalarRow(step=1, epoch=0, time=1, values={"x": 1.0})])
    segment_writer.close()
    assert deliver(tmp_path / "r", "tensorboard", timeout=HANG_SECS)["tensorboard"].pending == 0
    accumulator = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    accumulator.Reload()
    found = {
        tag: [event.value for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    assert found == {"x": [0.0, 1.0], "c/a_partial": [1.0], "c/b_partial": [2.0]}


def test_does_not_open_the_sink_after_losing_the_lease(tmp_path: Path) -> None:
    opened = []

    class Sink(MemorySink):
        def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
            opened.append(run.id)
            raise OSError(28, "No space left on device")

    with MetricBus(id="r", sinks="", dir=tmp_path):
        pass
    consumer = Consumer(RunFolder(tmp_path / "r"), spec_of(Sink()))
    consumer.request_flush()
    consumer._run_pass()
    (file,) = (tmp_path / "r" / "offsets").glob("[!.]*.lease-*")
    file.unlink()
    other = Lease(tmp_path / "r" / "offsets" / consumer.spec.destination)
    other.acquire(above=1)
    for _ in range(3):
        consumer.request_flush()
        consumer._run_pass()
    assert opened == ["r"]
    other.check()


def test_one_of_two_concurrent_processes_acquires_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two other leases are acquired between the check and the creation of the lease file."""
    original = create_file
    competitors = [Lease(tmp_path / "csv"), Lease(tmp_path / "csv")]

    def create_late(path: Path, content: bytes) -> None:
        monkeypatch.setattr(lease, "create_file", original)
        competitors[0].acquire()
        competitors[0].release()
        competitors[1].acquire(above=1)
        original(path, content)

    monkeypatch.setattr(lease, "create_file", create_late)
    late_lease = Lease(tmp_path / "csv")
    with pytest.raises(LeaseHeld):
        late_lease.acquire()
    competitors[1].check()
    assert len(list(tmp_path.glob("csv.lease-*"))) == 1


def test_does_not_append_to_a_file_that_another_process_has_changed(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "x", shared=True)
    file.append(b"one")
    with open(tmp_path / "x", "ab") as other:
        other.write(b"two")
    with pytest.raises(RecordsLostError, match="was changed by another process"):
        file.append(b"three")
    file.close()
    assert (tmp_path / "x").read_bytes() == b"onetwo"


def test_lease_released_between_listing_and_reading_counts_as_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Lease._lease_files
    released = {1: tmp_path / "csv.lease-000001"}
    monkeypatch.setattr(Lease, "_lease_files", lambda self: released | listed(self))
    own = Lease(tmp_path / "csv")
    assert own.acquire() == 2
    own.check()
    own.release()

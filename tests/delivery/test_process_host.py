"""The delivery process: what it takes off the training, and what becomes of it when things die."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metricbus
from metricbus import MetricBus
from metricbus._common.processes import ProcessId
from metricbus._delivery import process_host
from metricbus._delivery.control_files import AtomicJsonFile, DeliveryStatus, delivery_status_file
from metricbus._journal.run import RunFolder
from metricbus.testing import MemorySink
from tests.helpers.wandb_reader import wandb_files, wandb_records, wandb_rows

WaitFor = Callable[[Callable[[], bool]], None]


@pytest.fixture(autouse=True)
def in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METRICBUS_DELIVERY")


def made(bus: MetricBus) -> Path:
    assert bus.folder is not None
    return bus.folder


def delivery_of(folder: Path) -> ProcessId | None:
    """The process that delivers, or did last."""
    status = delivery_status_file(RunFolder(folder), 1).read()
    return status.process if status else None


def has_ended(folder: Path) -> bool:
    process = delivery_of(folder)
    return process is not None and not process.is_alive()


def csv_values(folder: Path) -> list[float]:
    try:
        lines = (folder / "csv" / "metrics.csv").read_text().splitlines()[1:]
    except FileNotFoundError:
        return []
    return [float(line.split(",")[4]) for line in lines]


def tensorboard_values(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.value for event in accumulator.Scalars("x")]


def log(bus: MetricBus, steps: range) -> None:
    for step in steps:
        bus.log("x", float(step), step=step)


def run(folder: Path, code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=50, check=False, **options
    )


# What it takes off the training


def test_heavy_backends_are_not_imported_by_the_training(tmp_path: Path) -> None:
    code = """
        import sys
        from metricbus import MetricBus
        with MetricBus(id="r", dir=".", sinks="csv,tensorboard,wandb,mlflow") as bus:
            for step in range(10):
                bus.log("x", float(step), step=step)
        assert bus.stats().complete, bus.stats()
        print([name for name in ("tensorboard", "wandb", "mlflow") if name in sys.modules])
    """
    done = run(tmp_path, code)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    assert csv_values(tmp_path / "r") == tensorboard_values(tmp_path / "r")
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == list(range(10))


@pytest.mark.parametrize(
    ("sinks", "hosting", "apart"),
    [
        ("csv", None, False),
        ("csv,tensorboard", None, True),
        ("csv", "process", True),
        ("csv,tensorboard", "thread", False),
        ("logging", "process", False),
    ],
)
def test_a_process_is_started_where_it_is_wanted(
    tmp_path: Path, sinks: str, hosting: Any, apart: bool
) -> None:
    with MetricBus(sinks=sinks, dir=tmp_path, delivery=hosting) as bus:
        log(bus, range(5))
        assert bus.flush().complete
    assert (made(bus) / "delivery").exists() == apart


def test_off_writes_the_journal_alone(tmp_path: Path) -> None:
    with MetricBus(sinks="csv,tensorboard", dir=tmp_path, delivery="off") as bus:
        log(bus, range(5))
        assert bus.flush().sinks == {}
    assert sorted(path.name for path in made(bus).iterdir()) == ["journal", "offsets", "run.json"]
    metricbus.deliver(made(bus), timeout=30)
    assert csv_values(made(bus)) == [0, 1, 2, 3, 4]


def test_an_object_stays_in_the_training_beside_the_process(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=["tensorboard", sink], dir=tmp_path) as bus:
        log(bus, range(5))
    assert [point.value for point in sink.series("x")] == [0, 1, 2, 3, 4]
    assert tensorboard_values(made(bus)) == [0, 1, 2, 3, 4]
    assert list(bus.stats().sinks) == ["tensorboard", "MemorySink"]


def test_what_it_warns_of_is_told_in_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path, tags=["t" * 100]) as bus:
        bus.log("x", 1.0)
    assert "is cut to 64 characters" in caplog.text
    assert caplog.text.count("is cut to 64 characters") == 1


def test_a_relative_location_is_that_of_where_the_bus_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = MetricBus(id="r", sinks="csv:here", dir=tmp_path, delivery="process")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    bus.log("x", 1.0)
    bus.close()
    assert (tmp_path / "here" / "r" / "metrics.csv").exists()


def test_secrets_reach_it_by_the_environment_alone(tmp_path: Path, wait_for: WaitFor) -> None:
    bus = MetricBus(sinks="mlflow+http://me:hunter2@127.0.0.1:9", dir=tmp_path)
    bus.log("x", 1.0)
    wait_for(lambda: delivery_of(made(bus)) is not None)
    process = delivery_of(made(bus))
    assert process is not None
    assert b"hunter2" in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"hunter2" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    bus.close(timeout=0.5)
    for path in made(bus).rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    os.kill(process.pid, signal.SIGKILL)


# Deaths


def test_the_process_is_started_again_and_nothing_is_lost_or_doubled(
    tmp_path: Path, wait_for: WaitFor, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="csv,tensorboard", dir=tmp_path) as bus:
        log(bus, range(500))
        bus.flush()
        process = delivery_of(made(bus))
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        log(bus, range(500, 1000))
        wait_for(lambda: delivery_of(made(bus)) != process)
        log(bus, range(1000, 1500))
    assert bus.stats().complete, bus.stats()
    assert csv_values(made(bus)) == list(range(1500))
    assert tensorboard_values(made(bus)) == list(range(1500))
    assert "the delivery process has died (signal 9); restarting it (start 2 of 5)" in caplog.text


def test_a_process_that_dies_again_and_again_is_given_up_and_told(
    tmp_path: Path,
    wait_for: WaitFor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(process_host, "_MAX_STARTS", 2)
    bus = MetricBus(sinks="csv", dir=tmp_path, delivery="process")
    log(bus, range(5))
    bus.flush()
    for _ in range(2):
        process = delivery_of(made(bus))
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        was = process
        wait_for(lambda: delivery_of(made(bus)) != was or "2 times" in caplog.text)  # noqa: B023
    log(bus, range(5, 10))
    report = bus.close()
    assert (report.sinks["csv"].delivered, report.sinks["csv"].pending) == (5, 5)
    assert "died repeatedly" in str(report.sinks["csv"].error)
    assert f"metricbus deliver {made(bus)}" in caplog.text
    metricbus.deliver(made(bus), timeout=30)
    assert csv_values(made(bus)) == list(range(10))


@pytest.mark.parametrize("interpreter", ["/nonexistent/python", "/bin/false", ""])
def test_threads_deliver_where_no_process_can_be_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    interpreter: str,
) -> None:
    monkeypatch.setattr(sys, "executable", interpreter)
    with MetricBus(sinks="csv", dir=tmp_path, delivery="process") as bus:
        log(bus, range(5))
    assert bus.stats().complete
    assert csv_values(made(bus)) == [0, 1, 2, 3, 4]
    assert "delivering from threads instead" in caplog.text


def test_when_the_training_is_killed_the_rest_is_delivered_and_the_run_marked(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    code = """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="csv,tensorboard,wandb", flush_secs=0.01)
        for step in range(2000):
            bus.log("x", float(step), step=step)
        while bus.stats().journalled < 2000:
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(tmp_path, code).returncode == -signal.SIGKILL
    wait_for(lambda: has_ended(tmp_path / "r"))
    assert csv_values(tmp_path / "r") == list(range(2000))
    assert tensorboard_values(tmp_path / "r") == list(range(2000))
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == list(range(2000))
    assert metricbus.read(tmp_path / "r").run.status == "killed"
    (file,) = wandb_files(tmp_path / "r")
    ends = [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")]
    assert ends == [255]
    assert not list((tmp_path / "r" / "offsets").glob("*.lease-*"))


def test_close_returns_in_time_and_delivery_goes_on_by_itself(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    """W&B is not even imported when the script ends."""
    code = """
        import time
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="wandb")
        bus.log("x", 1.0)
        began = time.monotonic()
        report = bus.close(timeout=0.1)
        print(report.sinks["wandb"].pending, time.monotonic() - began < 5)
    """
    done = run(tmp_path, code)
    assert done.stdout == "1 True\n"
    assert "1 not delivered" in done.stderr
    wait_for(lambda: has_ended(tmp_path / "r"))
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == [1]


def test_delivery_lingers_as_long_as_it_may(tmp_path: Path, wait_for: WaitFor) -> None:
    bus = MetricBus(sinks="mlflow+http://127.0.0.1:9", dir=tmp_path, linger_secs=0.5)
    bus.log("x", 1.0)
    bus.close(timeout=0.1)
    wait_for(lambda: has_ended(made(bus)))
    said = (made(bus) / "delivery" / "delivery.log").read_text()
    assert "stopped 0 s after the end of the run, with undelivered values for: mlflow" in said
    assert f"metricbus deliver {made(bus)}" in said


def test_who_waits_for_the_trainings_output_does_not_wait_for_delivery(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    code = """
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="mlflow+http://127.0.0.1:9", linger_secs=15)
        bus.log("x", 1.0)
        bus.close(timeout=0.1)
    """
    began = time.monotonic()
    run(tmp_path, code)
    assert time.monotonic() - began < 10
    wait_for(lambda: delivery_of(tmp_path / "r") is not None)
    assert not has_ended(tmp_path / "r")
    process = delivery_of(tmp_path / "r")
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def test_ctrl_c_in_a_terminal_ends_training_and_not_delivery(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    code = """
        import time
        from metricbus import MetricBus
        with MetricBus(id="r", dir=".", sinks="csv,tensorboard", close_timeout=0) as bus:
            bus.log("x", 1.0)
            bus.flush()
            bus.log("x", 2.0)
            print("ready", flush=True)
            while True:  # a signal that comes just before a long sleep would wait for its end
                time.sleep(0.01)
    """
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(code)])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    try:
        while select.select([terminal], [], [], 40)[0]:
            said += os.read(terminal, 1024)
        pytest.fail(f"it still runs; it has said {said.decode()}")
    except OSError:  # the end of a terminal
        pass
    os.close(terminal)
    assert b"KeyboardInterrupt" in said
    os.waitpid(pid, 0)
    wait_for(lambda: has_ended(tmp_path / "r"))
    assert csv_values(tmp_path / "r") == [1.0, 2.0]
    assert metricbus.read(tmp_path / "r").run.status == "killed"


# Others


def test_a_worker_that_outlives_the_training_is_delivered_too(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    worker = """
        import sys, time
        from pathlib import Path
        from metricbus import MetricBus
        bus = MetricBus()
        bus.log("x", 1.0)
        bus.flush()
        Path("joined").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        bus.log("x", 2.0)
        bus.close()
    """
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path, delivery="process")
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(worker)])
    wait_for((tmp_path / "joined").exists)
    began = time.monotonic()
    bus.close(timeout=30)
    assert time.monotonic() - began < 15, "it waited for the worker"
    assert csv_values(tmp_path / "r") == [1.0]
    (tmp_path / "go").touch()
    child.wait(30)
    wait_for(lambda: has_ended(tmp_path / "r"))
    assert csv_values(tmp_path / "r") == [1.0, 2.0]


def test_the_status_of_an_earlier_delivery_is_not_believed(tmp_path: Path) -> None:
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path, delivery="process")
    other = DeliveryStatus(ProcessId(os.uname().nodename, 1), {}, finished=["csv"], is_exiting=True)
    delivery_status_file(RunFolder(made(bus)), 1).write(other)
    bus.log("x", 1.0)
    assert bus.close().complete
    assert csv_values(made(bus)) == [1.0]


def test_a_notice_that_is_hurt_leaves_what_was_known(tmp_path: Path) -> None:
    notice = AtomicJsonFile(tmp_path / "status.json", DeliveryStatus)
    assert notice.read() is None
    status = DeliveryStatus(ProcessId("here", 1), {})
    notice.write(status)
    assert notice.read() == status
    (tmp_path / "status.json").write_bytes(b"{")
    assert notice.read() == status


def test_orders_that_cannot_be_written_do_not_hold_back_the_end(
    tmp_path: Path, wait_for: WaitFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say; run.json has the end too."""
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path, delivery="process")
    bus.log("x", 1.0)
    with monkeypatch.context() as full:

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(AtomicJsonFile, "write", refuse)
        bus.close(timeout=0.2)
    wait_for(lambda: has_ended(made(bus)))
    assert csv_values(made(bus)) == [1.0]


def test_wandb_is_told_of_the_training_and_not_of_the_delivery(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "from metricbus import MetricBus\n"
        "with MetricBus(id='r', dir='.', sinks='wandb') as bus:\n"
        "    bus.log('x', 1.0)\n"
    )
    command = [sys.executable, "train.py", "--lr", "0.1"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=50)
    (file,) = wandb_files(tmp_path / "r")
    first, *_ = [r.environment for r in wandb_records(file) if r.HasField("environment")]
    assert first.program == str(tmp_path / "train.py")
    assert list(first.args) == ["--lr", "0.1"]


def test_a_training_that_uses_wandb_itself_does_not_share_its_process(tmp_path: Path) -> None:
    """W&B's process would keep the run for a delivery process that has died."""
    code = """
        import json, os, signal, time
        import wandb
        from metricbus import MetricBus
        own = wandb.init(mode="offline", dir=".")
        bus = MetricBus(id="r", dir=".", sinks="wandb")
        bus.log("x", 1.0, step=0)
        bus.flush()
        status = json.loads((bus.folder / "delivery" / "status-1.json").read_bytes())
        os.kill(status["process"]["pid"], signal.SIGKILL)
        bus.log("x", 2.0, step=1)
        assert bus.close(timeout=40).complete, bus.stats()
        own.finish()
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == [1, 2]


@pytest.mark.parametrize("name", ["tensorboard.py", "wandb.py", "json.py"])
def test_a_training_that_is_named_like_a_package_is_not_run_again(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(
        "from metricbus import MetricBus\n"
        "with MetricBus(id='r', dir='.', sinks='csv,tensorboard') as bus:\n"
        "    for step in range(5):\n"
        "        bus.log('x', float(step), step=step)\n"
        "assert bus.stats().complete, bus.stats()\n"
    )
    if name == "json.py":  # it is no use to the training either
        (tmp_path / name).rename(tmp_path / "train.py")
        (tmp_path / "tensorboard.py").write_text("raise SystemExit(1)\n")
        name = "train.py"
    done = subprocess.run(
        [sys.executable, name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert csv_values(tmp_path / "r") == list(range(5)), done.stderr
    assert len(list((tmp_path / "r" / "journal").iterdir())) == 1


@pytest.mark.parametrize(
    "oddity",
    [
        "import sys; from pathlib import Path; sys.path.insert(0, Path('x'))",
        "import sys; sys.argv.append('\\udcff')",
        "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    ],
)
def test_odd_circumstances_do_not_keep_the_training_from_its_bus(
    tmp_path: Path, oddity: str
) -> None:
    code = f"""
        {oddity}
        from metricbus import MetricBus
        with MetricBus(id="r", dir={str(tmp_path)!r}, sinks="csv,tensorboard") as bus:
            bus.log("x", 1.0)
        assert bus.stats().complete, bus.stats()
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert tensorboard_values(tmp_path / "r") == [1.0]


def test_a_frozen_application_does_not_start_itself_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with MetricBus(sinks="csv", dir=tmp_path, delivery="process") as bus:
        log(bus, range(5))
    assert csv_values(made(bus)) == [0, 1, 2, 3, 4]
    assert "delivering from threads instead" in caplog.text


def test_without_lingering_close_still_waits_for_delivery(tmp_path: Path) -> None:
    bus = MetricBus(sinks="tensorboard", dir=tmp_path, linger_secs=0)
    log(bus, range(20_000))
    assert bus.close(timeout=40).complete


def test_a_delivery_that_was_superseded_goes_on_when_the_other_has_gone(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path, delivery="process")
    log(bus, range(10))
    bus.flush()
    process = delivery_of(made(bus))
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    (file,) = (made(bus) / "offsets").glob("[!.]*.lease-*")
    os.utime(file, (time.time() - 100, time.time() - 100))
    log(bus, range(10, 20))
    wait_for(lambda: bus.stats().journalled == 20)
    assert metricbus.deliver(made(bus), "csv", timeout=30)["csv"].delivered == 20
    os.kill(process.pid, signal.SIGCONT)
    log(bus, range(20, 30))
    assert bus.close().complete
    assert csv_values(made(bus)) == list(range(30))


def test_a_run_folder_that_is_deleted_does_not_keep_the_process_for_good(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    code = """
        import os, shutil
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="csv:out", delivery="process", linger_secs=0.5)
        bus.log("x", 1.0)
        bus.flush()
        print(bus._session._delivery._hosts[0]._status.process.pid, flush=True)
        shutil.rmtree("r")
        os._exit(0)
    """
    done = run(tmp_path, code)
    process = ProcessId(os.uname().nodename, int(done.stdout))
    wait_for(lambda: not process.is_alive())
    assert (tmp_path / "out" / "r" / "metrics.csv").read_text().count("x,1.0") == 1

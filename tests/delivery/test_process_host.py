"""The delivery process: what runs in it, and what happens when a process dies."""

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

import msgspec
import pytest

import metricbus
from metricbus import MetricBus
from metricbus._common.processes import ProcessId
from metricbus._delivery import process_host
from metricbus._delivery.control_files import AtomicJsonFile, DeliveryStatus, delivery_status_file
from metricbus._journal.run import RunFolder
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import PATIENT
from tests.helpers.wandb_reader import wandb_files, wandb_records, wandb_rows

WaitFor = Callable[[Callable[[], bool]], None]


@pytest.fixture(autouse=True)
def use_delivery_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METRICBUS_DELIVERY")


def folder_of(bus: MetricBus) -> Path:
    assert bus.dir is not None
    return bus.dir


def delivery_process(folder: Path) -> ProcessId | None:
    """Return the current or last delivery process."""
    status = delivery_status_file(RunFolder(folder), 1).read()
    return status.process if status else None


def delivery_has_ended(folder: Path) -> bool:
    process = delivery_process(folder)
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
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
        **{"env": os.environ | PATIENT} | options,
    )


# What runs in the process


def test_the_training_does_not_import_large_backends(tmp_path: Path) -> None:
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
    ("sinks", "hosting", "uses_process"),
    [
        ("csv", None, False),
        ("csv,tensorboard", None, True),
        ("csv", "process", True),
        ("csv,tensorboard", "thread", False),
        ("logging", "process", False),
    ],
)
def test_starts_a_process_only_if_needed(
    tmp_path: Path, sinks: str, hosting: Any, uses_process: bool
) -> None:
    with MetricBus(sinks=sinks, dir=tmp_path, delivery=hosting) as bus:
        log(bus, range(5))
        assert bus.flush().complete
    assert (folder_of(bus) / "delivery").exists() == uses_process


def test_delivery_off_writes_only_the_journal(tmp_path: Path) -> None:
    with MetricBus(sinks="csv,tensorboard", dir=tmp_path, delivery="off") as bus:
        log(bus, range(5))
        assert bus.flush().sinks == {}
    assert sorted(path.name for path in folder_of(bus).iterdir()) == [
        "journal",
        "offsets",
        "run.json",
    ]
    metricbus.deliver(folder_of(bus), timeout=HANG_SECS)
    assert csv_values(folder_of(bus)) == [0, 1, 2, 3, 4]


def test_a_sink_object_stays_in_the_training_process(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=["tensorboard", sink], dir=tmp_path) as bus:
        log(bus, range(5))
    assert [point.value for point in sink.series("x")] == [0, 1, 2, 3, 4]
    assert tensorboard_values(folder_of(bus)) == [0, 1, 2, 3, 4]
    assert list(bus.stats().sinks) == ["tensorboard", "MemorySink"]


def test_relays_warnings_to_the_training_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="wandb", dir=tmp_path, tags=["t" * 100]) as bus:
        bus.log("x", 1.0)
    assert "is cut to 64 characters" in caplog.text
    assert caplog.text.count("is cut to 64 characters") == 1


def test_a_relative_location_refers_to_the_directory_in_which_the_bus_was_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = MetricBus(id="r", sinks="csv:here", dir=tmp_path, delivery="process")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    bus.log("x", 1.0)
    bus.close()
    assert (tmp_path / "here" / "r" / "metrics.csv").exists()


def test_passes_secrets_only_in_the_environment(tmp_path: Path, wait_for: WaitFor) -> None:
    bus = MetricBus(sinks="mlflow+http://me:hunter2@127.0.0.1:9", dir=tmp_path)
    bus.log("x", 1.0)
    wait_for(lambda: delivery_process(folder_of(bus)) is not None)
    process = delivery_process(folder_of(bus))
    assert process is not None
    assert b"hunter2" in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"hunter2" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    bus.close(timeout=0.5)
    for path in folder_of(bus).rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    os.kill(process.pid, signal.SIGKILL)


# Deaths


def test_restarts_a_process_that_died_without_losing_or_repeating_values(
    tmp_path: Path, wait_for: WaitFor, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricBus(sinks="csv,tensorboard", dir=tmp_path) as bus:
        log(bus, range(500))
        bus.flush()
        process = delivery_process(folder_of(bus))
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        log(bus, range(500, 1000))
        wait_for(lambda: delivery_process(folder_of(bus)) != process)
        log(bus, range(1000, 1500))
    assert bus.stats().complete, bus.stats()
    assert csv_values(folder_of(bus)) == list(range(1500))
    assert tensorboard_values(folder_of(bus)) == list(range(1500))
    assert "the delivery process has died (signal 9); restarting it (start 2 of 5)" in caplog.text


def test_gives_up_on_a_process_that_dies_repeatedly(
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
        process = delivery_process(folder_of(bus))
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        previous = process
        wait_for(lambda: delivery_process(folder_of(bus)) != previous or "2 times" in caplog.text)  # noqa: B023
    log(bus, range(5, 10))
    report = bus.close()
    assert (report.sinks["csv"].delivered, report.sinks["csv"].pending) == (5, 5)
    assert "died repeatedly" in str(report.sinks["csv"].error)
    assert f"metricbus deliver {folder_of(bus)}" in caplog.text
    metricbus.deliver(folder_of(bus), timeout=HANG_SECS)
    assert csv_values(folder_of(bus)) == list(range(10))


@pytest.mark.parametrize("interpreter", ["/nonexistent/python", "/bin/false", ""])
def test_threads_deliver_if_no_process_can_be_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    interpreter: str,
) -> None:
    monkeypatch.setattr(sys, "executable", interpreter)
    with MetricBus(sinks="csv", dir=tmp_path, delivery="process") as bus:
        log(bus, range(5))
    assert bus.stats().complete
    assert csv_values(folder_of(bus)) == [0, 1, 2, 3, 4]
    assert "delivering from threads instead" in caplog.text


def test_delivers_the_rest_of_a_killed_training_and_marks_the_run(
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
    wait_for(lambda: delivery_has_ended(tmp_path / "r"))
    assert csv_values(tmp_path / "r") == list(range(2000))
    assert tensorboard_values(tmp_path / "r") == list(range(2000))
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == list(range(2000))
    assert metricbus.read(tmp_path / "r").run.status == "killed"
    (file,) = wandb_files(tmp_path / "r")
    ends = [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")]
    assert ends == [255]
    assert not list((tmp_path / "r" / "offsets").glob("*.lease-*"))


def test_close_returns_in_time_and_delivery_continues(tmp_path: Path, wait_for: WaitFor) -> None:
    """The script ends before the delivery process has imported W&B."""
    code = """
        import time
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="wandb")
        bus.log("x", 1.0)
        started = time.monotonic()
        report = bus.close(timeout=0.1)
        print(report.sinks["wandb"].pending, time.monotonic() - started < 5)
    """
    done = run(tmp_path, code)
    assert done.stdout == "1 True\n"
    assert "1 not delivered" in done.stderr
    wait_for(lambda: delivery_has_ended(tmp_path / "r"))
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == [1]


def test_delivery_stops_after_linger_secs(tmp_path: Path, wait_for: WaitFor) -> None:
    bus = MetricBus(sinks="mlflow+http://127.0.0.1:9", dir=tmp_path, linger_secs=0.5)
    bus.log("x", 1.0)
    bus.close(timeout=0.1)
    wait_for(lambda: delivery_has_ended(folder_of(bus)))
    output = (folder_of(bus) / "delivery" / "delivery.log").read_text()
    assert "stopped 0 s after the end of the run, with undelivered values for: mlflow" in output
    assert f"metricbus deliver {folder_of(bus)}" in output


def test_the_output_of_the_training_ends_before_delivery_does(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    code = """
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="mlflow+http://127.0.0.1:9", linger_secs=15)
        bus.log("x", 1.0)
        bus.close(timeout=0.1)
    """
    started = time.monotonic()
    run(tmp_path, code)
    assert time.monotonic() - started < 10
    wait_for(lambda: delivery_process(tmp_path / "r") is not None)
    assert not delivery_has_ended(tmp_path / "r")
    process = delivery_process(tmp_path / "r")
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def test_ctrl_c_in_a_terminal_ends_the_training_but_not_the_delivery(
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
            while True:  # a long sleep would delay a signal that arrives just before it
                time.sleep(0.01)
    """
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(code)])
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    try:
        while select.select([terminal], [], [], 40)[0]:
            output += os.read(terminal, 1024)
        pytest.fail(f"the training still runs; its output: {output.decode()}")
    except OSError:  # end of file on a terminal
        pass
    os.close(terminal)
    assert b"KeyboardInterrupt" in output
    os.waitpid(pid, 0)
    wait_for(lambda: delivery_has_ended(tmp_path / "r"))
    assert csv_values(tmp_path / "r") == [1.0, 2.0]
    assert metricbus.read(tmp_path / "r").run.status == "killed"


# Other processes and environments


def test_delivers_a_worker_that_outlives_the_training(tmp_path: Path, wait_for: WaitFor) -> None:
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
    started = time.monotonic()
    bus.close(timeout=HANG_SECS)
    assert time.monotonic() - started < 15, "close waited for the worker"
    assert csv_values(tmp_path / "r") == [1.0]
    (tmp_path / "go").touch()
    child.wait(HANG_SECS)
    wait_for(lambda: delivery_has_ended(tmp_path / "r"))
    assert csv_values(tmp_path / "r") == [1.0, 2.0]


def test_ignores_the_status_of_an_earlier_delivery(tmp_path: Path) -> None:
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path, delivery="process")
    stale = DeliveryStatus(ProcessId(os.uname().nodename, 1), {}, finished=["csv"], is_exiting=True)
    delivery_status_file(RunFolder(folder_of(bus)), 1).write(stale)
    bus.log("x", 1.0)
    assert bus.close().complete
    assert csv_values(folder_of(bus)) == [1.0]


def test_a_damaged_json_file_does_not_replace_the_last_content(tmp_path: Path) -> None:
    file = AtomicJsonFile(tmp_path / "status.json", msgspec.json.Decoder(DeliveryStatus))
    assert file.read() is None
    status = DeliveryStatus(ProcessId("here", 1), {})
    file.write(status)
    assert file.read() == status
    (tmp_path / "status.json").write_bytes(b"{")
    assert file.read() == status


def test_ends_even_if_the_commands_cannot_be_written(
    tmp_path: Path, wait_for: WaitFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example with a full disk; run.json contains the final status too."""
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path, delivery="process")
    bus.log("x", 1.0)
    with monkeypatch.context() as full:

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(AtomicJsonFile, "write", refuse)
        bus.close(timeout=0.2)
    wait_for(lambda: delivery_has_ended(folder_of(bus)))
    assert csv_values(folder_of(bus)) == [1.0]


def test_wandb_records_the_command_line_of_the_training(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "from metricbus import MetricBus\n"
        "with MetricBus(id='r', dir='.', sinks='wandb') as bus:\n"
        "    bus.log('x', 1.0)\n"
    )
    command = [sys.executable, "train.py", "--lr", "0.1"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=HANG_SECS)
    (file,) = wandb_files(tmp_path / "r")
    first, *_ = [r.environment for r in wandb_records(file) if r.HasField("environment")]
    assert first.program == str(tmp_path / "train.py")
    assert list(first.args) == ["--lr", "0.1"]


def test_does_not_share_the_wandb_process_of_the_training(tmp_path: Path) -> None:
    """That process would keep the run open for a delivery process that has died."""
    code = """
        import json, os, signal, time
        import wandb
        from metricbus import MetricBus
        own = wandb.init(mode="offline", dir=".")
        bus = MetricBus(id="r", dir=".", sinks="wandb")
        bus.log("x", 1.0, step=0)
        bus.flush()
        status = json.loads((bus.dir / "delivery" / "status-1.json").read_bytes())
        os.kill(status["process"]["pid"], signal.SIGKILL)
        bus.log("x", 2.0, step=1)
        assert bus.close(timeout=40).complete, bus.stats()
        own.finish()
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert [row["x"] for row in wandb_rows(tmp_path / "r")] == [1, 2]


@pytest.mark.parametrize("name", ["tensorboard.py", "wandb.py", "json.py"])
def test_does_not_import_a_training_script_that_is_named_like_a_package(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(
        "from metricbus import MetricBus\n"
        "with MetricBus(id='r', dir='.', sinks='csv,tensorboard') as bus:\n"
        "    for step in range(5):\n"
        "        bus.log('x', float(step), step=step)\n"
        "assert bus.stats().complete, bus.stats()\n"
    )
    if name == "json.py":  # the training script could not import json either
        (tmp_path / name).rename(tmp_path / "train.py")
        (tmp_path / "tensorboard.py").write_text("raise SystemExit(1)\n")
        name = "train.py"
    done = subprocess.run(
        [sys.executable, name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert csv_values(tmp_path / "r") == list(range(5)), done.stderr
    assert len(list((tmp_path / "r" / "journal").iterdir())) == 1


@pytest.mark.parametrize(
    "setup",
    [
        "import sys; from pathlib import Path; sys.path.insert(0, Path('x'))",
        "import sys; sys.argv.append('\\udcff')",
        "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    ],
)
def test_the_bus_opens_in_unusual_environments(tmp_path: Path, setup: str) -> None:
    code = f"""
        {setup}
        from metricbus import MetricBus
        with MetricBus(id="r", dir={str(tmp_path)!r}, sinks="csv,tensorboard") as bus:
            bus.log("x", 1.0)
        assert bus.stats().complete, bus.stats()
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert tensorboard_values(tmp_path / "r") == [1.0]


def test_a_frozen_application_does_not_start_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with MetricBus(sinks="csv", dir=tmp_path, delivery="process") as bus:
        log(bus, range(5))
    assert csv_values(folder_of(bus)) == [0, 1, 2, 3, 4]
    assert "delivering from threads instead" in caplog.text


def test_close_waits_for_delivery_even_without_lingering(tmp_path: Path) -> None:
    bus = MetricBus(sinks="tensorboard", dir=tmp_path, linger_secs=0)
    log(bus, range(20_000))
    assert bus.close(timeout=HANG_SECS).complete


def test_resumes_when_the_process_that_took_over_the_lease_is_done(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    bus = MetricBus(id="r", sinks="csv", dir=tmp_path, delivery="process")
    log(bus, range(10))
    bus.flush()
    process = delivery_process(folder_of(bus))
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    (file,) = (folder_of(bus) / "offsets").glob("[!.]*.lease-*")
    os.utime(file, (time.time() - 100, time.time() - 100))
    log(bus, range(10, 20))
    wait_for(lambda: bus.stats().journalled == 20)
    assert metricbus.deliver(folder_of(bus), "csv", timeout=HANG_SECS)["csv"].delivered == 20
    os.kill(process.pid, signal.SIGCONT)
    log(bus, range(20, 30))
    assert bus.close().complete
    assert csv_values(folder_of(bus)) == list(range(30))


def test_the_process_exits_after_the_run_folder_is_deleted(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    code = """
        import os, shutil
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="csv:out", delivery="process", linger_secs=0.5)
        bus.log("x", 1.0)
        bus.flush()
        print(bus._core.session._delivery._hosts[0]._status.process.pid, flush=True)
        shutil.rmtree("r")
        os._exit(0)
    """
    done = run(tmp_path, code)
    process = ProcessId(os.uname().nodename, int(done.stdout))
    wait_for(lambda: not process.is_alive())
    assert (tmp_path / "out" / "r" / "metrics.csv").read_text().count("x,1.0") == 1

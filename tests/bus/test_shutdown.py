"""The ways a run can end, and what each can lose: the table in docs/durability.md."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import metricbus
from metricbus import MetricBus
from metricbus._common.settings import Fsync
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import run_script

WaitFor = Callable[[Callable[[], bool]], None]

TRAINING = """
    import os, signal, sys, threading, time
    from metricbus import MetricBus
    bus = MetricBus(id="r", dir=".", sinks="csv", flush_secs=0.2)
    bus.define("mean", every=2000, reduce="mean")
    for step in range(1000):
        bus.log({"x": float(step), "mean": 2.0}, step=step)
"""


def training_with_end(end: str) -> str:
    return textwrap.dedent(TRAINING) + textwrap.dedent(end)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", "finished"),
        ("bus.close()", "finished"),
        ("raise ValueError('oops')", "failed"),
        ("sys.exit()", "finished"),
        ("with bus: sys.exit(3)", "failed"),
        ("with bus: raise ValueError('oops')", "failed"),
        ("with bus: os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", "killed"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", "killed"),
    ],
)
def test_exit_that_runs_handlers_loses_nothing(tmp_path: Path, end: str, status: str) -> None:
    run_script(tmp_path, training_with_end(end))
    history = metricbus.read(tmp_path / "r")
    assert len(history.series("x")) == 1000
    assert history.series("mean").value.tolist() == [2.0]
    assert history.run.status == status
    assert len((tmp_path / "r/csv/metrics.csv").read_text().splitlines()) == 1 + 1001


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), 15)"]
)
def test_exit_without_handlers_keeps_values_written_by_the_collector(
    tmp_path: Path, end: str
) -> None:
    """Only values newer than the collector's last pass may be lost."""
    wait_for_collector = """
        while bus.stats().waiting:
            time.sleep(0.001)
        bus.log("newer", 1.0)
    """
    run_script(tmp_path, training_with_end(textwrap.dedent(wait_for_collector) + end))
    history = metricbus.read(tmp_path / "r")
    assert len(history.series("x")) == 1000
    assert history.run.status == "running"
    metricbus.deliver(tmp_path / "r", timeout=HANG_SECS)
    assert metricbus.read(tmp_path / "r").run.status == "killed"


def test_sigterm_flush_saves_everything_then_ends_the_process(tmp_path: Path) -> None:
    end = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
    done = run_script(tmp_path, training_with_end(end), METRICBUS_SIGTERM="flush")
    assert done.returncode == -signal.SIGTERM
    history = metricbus.read(tmp_path / "r")
    assert len(history.series("x")) == 1000
    assert [row.values["mean"] for row in history.partial] == [2.0]


def test_sigterm_flush_then_calls_the_scripts_own_handler(tmp_path: Path) -> None:
    code = """
        import signal, sys
        signal.signal(signal.SIGTERM, lambda number, frame: print("saved the model", flush=True))
    """
    end = "os.kill(os.getpid(), signal.SIGTERM); print(bus.stats().waiting); bus.close()"
    done = run_script(
        tmp_path, textwrap.dedent(code) + training_with_end(end), METRICBUS_SIGTERM="flush"
    )
    assert done.stdout == "saved the model\n0\n", done.stderr
    assert metricbus.read(tmp_path / "r").run.status == "finished"


def test_sigterm_during_logging_and_flushing_does_not_hang(tmp_path: Path) -> None:
    code = """
        import os, signal, threading, time
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="csv", sigterm="flush")
        seen = []
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        from metricbus._bus import shutdown
        shutdown._previous_handler = lambda number, frame: seen.append(number)
        def send_signals():
            for _ in range(100):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.005)
        thread = threading.Thread(target=send_signals)
        thread.start()
        count = 0
        while thread.is_alive():
            for _ in range(50):
                bus.log("x", 1.0)
                count += 1
            bus.flush()
        bus.close()
        print(len(seen) > 10, bus.stats().logged == count)
    """
    done = run_script(tmp_path, code)
    assert done.stdout == "True True\n", done.stderr


def test_sigterm_has_no_handler_by_default(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with MetricBus(sinks="", dir=tmp_path):
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("fsync", "times"), [("never", 0), ("flush", 3), ("always", 4)])
def test_fsync_setting_determines_when_the_journal_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, times: int
) -> None:
    synced: list[int] = []
    fsync_file = os.fsync

    def fsync_and_count(fd: int) -> None:
        synced.append(fd)
        fsync_file(fd)

    monkeypatch.setattr(os, "fsync", fsync_and_count)
    with MetricBus(sinks="", dir=tmp_path, fsync=fsync) as bus:
        bus.log("x", 1.0)
        bus.flush()
    assert len(synced) == times, "the header, the row and the end; the folder once"


def test_failing_fsync_warns_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with MetricBus(sinks="", dir=tmp_path, fsync="always") as bus:
        bus.log("x", 1.0)
    assert bus.dir is not None
    assert len(metricbus.read(bus.dir).series("x")) == 1
    assert "may not survive a power cut" in caplog.text


@pytest.mark.parametrize("host", ["pytest", "thread", "notebook"])
def test_blocked_sink_does_not_delay_exit_beyond_the_deadline(tmp_path: Path, host: str) -> None:
    training = """
        import threading
        from metricbus import MetricBus, Sink
        class Blocks(Sink):
            def write(self, records):
                threading.Event().wait()
        bus = MetricBus(id="r", dir=".", sinks=[Blocks(), "csv"], close_timeout=1)
        bus.log("x", 1.0)
    """
    code = textwrap.dedent(training)
    if host == "pytest":
        (tmp_path / "test_it.py").write_text(f"def test_it():\n{textwrap.indent(code, '    ')}")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    elif host == "thread":
        body = textwrap.indent(code, "    ")
        call = "import threading\nthread = threading.Thread(target=train)\nthread.start()\n"
        (tmp_path / "train.py").write_text(f"def train():\n{body}\n{call}")
        command = [sys.executable, "train.py"]
    else:
        notebook = f"""
            import nbformat
            from nbclient import NotebookClient
            cells = [nbformat.v4.new_code_cell(code) for code in ({code!r}, "bus.stats().logged")]
            notebook = nbformat.v4.new_notebook(cells=cells)
            NotebookClient(notebook, timeout=60).execute()
            assert notebook.cells[1].outputs[0].data["text/plain"] == "1"
        """
        (tmp_path / "train.py").write_text(textwrap.dedent(notebook))
        command = [sys.executable, "-W", "ignore", "train.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "r/csv/metrics.csv").read_text().splitlines()
    assert len(lines) == 2

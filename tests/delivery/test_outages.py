"""Backends that are down, slow, broken or full: nothing raises, every value is counted."""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

import metricbus
from metricbus import MetricBus, Report
from metricbus._common.settings import Hosting
from metricbus.sinks.mlflow.store import retry_after
from tests.helpers.limits import HANG_SECS

WaitFor = Callable[[Callable[[], bool]], None]
Handler = Callable[[socket.socket], None]


@contextlib.contextmanager
def fake_server(handle: Handler) -> Iterator[str]:
    """Handle each connection to a server on loopback; yield the address of the server."""
    listening = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connections.append(connection)
                handle(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)
        for connection in connections:
            connection.close()


def respond_with(text: str) -> Handler:
    def handle(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(text.replace("\n", "\r\n").encode())
            connection.close()

    return handle


def never_respond(connection: socket.socket) -> None:
    """Accept the connection without ever responding."""


def reset_connection(connection: socket.socket) -> None:
    """Close the connection with RST, like a proxy after its timeout."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


HTML = "<html>Bad Gateway</html>"
HANDLERS: dict[str, Handler] = {
    "never responds": never_respond,
    "reset": reset_connection,
    "429": respond_with(
        f"HTTP/1.1 429 Too Many\nRetry-After: 1\nContent-Length: {len(HTML)}\n\n{HTML}"
    ),
    "500": respond_with(f"HTTP/1.1 500 Oops\nContent-Length: {len(HTML)}\n\n{HTML}"),
    "404 of a proxy": respond_with(f"HTTP/1.1 404 Lost\nContent-Length: {len(HTML)}\n\n{HTML}"),
    "html": respond_with(f"HTTP/1.1 200 OK\nContent-Length: {len(HTML)}\n\n{HTML}"),
    "garbage": respond_with("\x00\x01\x02 this is no HTTP"),
}


def log_values(url: str, folder: Path) -> Report:
    """Log 20 values, close the bus once the sink has failed, and return the report."""
    bus = MetricBus(sinks=f"csv,{url}", dir=folder, close_timeout=1.5)
    for step in range(20):
        bus.log("x", float(step), step=step)
    deadline = time.monotonic() + HANG_SECS
    while bus.stats().sinks[url].error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return bus.close()


@pytest.mark.usefixtures("stops_consumers")
@pytest.mark.parametrize("kind", HANDLERS)
def test_a_useless_server_affects_nothing_else(kind: str, tmp_path: Path) -> None:
    with fake_server(HANDLERS[kind]) as address:
        url = f"mlflow+{address}?timeout_secs=1"
        report = log_values(url, tmp_path)
    assert report.sinks["csv"].delivered == 20
    mlflow = report.sinks[url]
    assert (mlflow.delivered, mlflow.rejected, mlflow.pending) == (0, 0, 20)
    assert mlflow.error is not None


@pytest.mark.usefixtures("stops_consumers")
def test_an_unknown_host_name_affects_nothing_else(tmp_path: Path) -> None:
    url = "mlflow+http://no-such-host.invalid:5000?timeout_secs=1"
    report = log_values(url, tmp_path)
    assert (report.sinks["csv"].delivered, report.sinks[url].pending) == (20, 20)


@pytest.mark.usefixtures("stops_consumers")
def test_waits_as_long_as_retry_after_requests(tmp_path: Path) -> None:
    request_times: list[float] = []

    def busy(connection: socket.socket) -> None:
        request_times.append(time.monotonic())
        respond_with("HTTP/1.1 429 Too Many\nRetry-After: 2\nContent-Length: 0\n\n")(connection)

    with fake_server(busy) as address:
        bus = MetricBus(sinks=f"mlflow+{address}", dir=tmp_path)
        bus.log("x", 1.0)
        for _ in range(10):
            bus.flush(timeout=0.5)  # must not shorten the delay
        bus.close(timeout=0)
    assert len(request_times) >= 2
    gaps = [later - earlier for earlier, later in itertools.pairwise(request_times)]
    assert min(gaps) > 1.9, gaps


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("0.5", 0.5), ("-3", 0)])
def test_parses_retry_after_in_seconds(header: str, seconds: float) -> None:
    assert retry_after(header) == seconds


def test_parses_retry_after_with_a_date() -> None:
    seconds = retry_after(email.utils.formatdate(time.time() + 60))
    assert seconds is not None
    assert 5 < seconds <= 61
    assert retry_after(email.utils.formatdate(time.time() - 60)) == 0


@pytest.mark.parametrize("header", [None, "", "soon"])
def test_ignores_an_invalid_retry_after(header: str | None) -> None:
    assert retry_after(header) is None


# A real server that dies


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    with open(folder / "server.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *address, *store],
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
        )


def is_listening(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def kill(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(HANG_SECS)


@pytest.mark.parametrize("hosting", ["thread", "process"])
def test_a_restarted_server_has_every_metric_once(
    tmp_path: Path, wait_for: WaitFor, hosting: Hosting
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start_server(tmp_path, port)
    try:
        deadline = time.monotonic() + 60
        while not is_listening(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        url = f"mlflow+http://127.0.0.1:{port}"
        # A busy machine may take long to start the server again.
        bus = MetricBus(
            id="r",
            sinks=f"csv,{url}",
            dir=tmp_path,
            delivery=hosting,
            linger_secs=HANG_SECS,
            close_timeout=HANG_SECS,
        )
        slowest = []
        for phase, steps in enumerate((range(2000), range(2000, 4000), range(4000, 6000))):
            worst = 0.0
            for step in steps:
                started = time.perf_counter()
                bus.log("x", float(step), step=step)
                worst = max(worst, time.perf_counter() - started)
                if phase == 0 and step == 1000:
                    bus.flush(30)
                    kill(server)
            slowest.append(worst)
            logged = steps.stop
            wait_for(lambda: bus.stats().sinks["csv"].delivered == logged)  # noqa: B023
        assert bus.stats().sinks[url].pending > 0
        server = start_server(tmp_path, port)
        assert bus.close().complete, str(bus.stats())
        client = MlflowClient(f"http://127.0.0.1:{port}")
        (run,) = client.search_runs(["1"])
        found = [point.step for point in client.get_metric_history(run.info.run_id, "x")]
        assert found == list(range(6000))
        assert max(slowest) < 1.0, "log() waited for a server that is down"
    finally:
        kill(server)


# A journal that cannot be written


def test_a_full_disk_drops_only_what_exceeds_the_queue(tmp_path: Path) -> None:
    """A limit on the file size simulates a full disk: a write fails in the middle of a line."""
    code = """
        import resource, signal, time
        from metricbus import MetricBus
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        bus = MetricBus(
            id="r", dir=".", sinks="csv", queue_size=100, overflow="drop_newest", flush_secs=0.01
        )
        segment = bus.dir / "journal" / "0001.jsonl"
        bus.log("x", -1.0, step=0)
        bus.flush()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + 1000, hard))
        step = 0
        while bus.stats().dropped < 50:
            bus.log("x", float(step), step=step)
            step += 1
            time.sleep(0.0005)
        assert segment.read_bytes()[-1] == 10, "a line is torn"
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        report = bus.flush()
        bus.log("y", 1.0)
        report = bus.close()
        assert report.logged == step + 2, report
        assert report.waiting == 0
        assert report.sinks["csv"].delivered == report.journalled == step + 2 - report.dropped
        print(report.dropped, report.journalled)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECS, check=False
    )
    assert done.returncode == 0, done.stderr
    dropped, journalled = map(int, done.stdout.split())
    assert dropped >= 50
    history = metricbus.read(tmp_path / "r")
    assert (len(history), history.damaged, history.torn) == (journalled, 0, 0)
    assert "the journal can be written again" in done.stderr


def test_a_hanging_disk_pauses_once_and_then_counts_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metricbus._journal.segment_writer import SegmentWriter

    disk_works = threading.Event()
    disk_works.set()
    append = SegmentWriter.append

    def append_late(self: SegmentWriter, records: object) -> None:
        while not disk_works.is_set():
            time.sleep(0.01)
        append(self, records)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentWriter, "append", append_late)
    with MetricBus(sinks="csv", dir=tmp_path, queue_size=50, block_secs=0.5) as bus:
        bus.log("x", 0.0)
        bus.flush()
        disk_works.clear()
        elapsed = []
        for step in range(1000):
            started = time.monotonic()
            bus.log("x", float(step), step=step)
            elapsed.append(time.monotonic() - started)
        assert sum(secs > 0.3 for secs in elapsed) == 1, "more than one pause"
        assert bus.stats().dropped > 0
        disk_works.set()
        bus.flush()
        before = bus.stats().dropped
        bus.log("y", 1.0)
        report = bus.flush()
    assert report.dropped == before
    assert report.logged == 1002
    assert report.sinks["csv"].delivered == report.journalled == 1002 - before

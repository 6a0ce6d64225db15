"""The environment of every test.

A test starts without settings in the environment, in an empty folder, with unconfigured loggers and
default signal handlers. It fails if it leaves a thread or process of metricbus running, and at once
if a collector or consumer ends because of a programming error.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

from metricbus import MetricBus
from metricbus._bus import shutdown
from metricbus._bus.core import BusCore
from metricbus.testing import MemorySink
from tests.helpers.internal_errors import InternalErrors
from tests.helpers.leftovers import MARKER, marked_processes, own_threads, stop_consumers
from tests.helpers.limits import HANG_SECS, scaled

# A shell ignores SIGINT in the commands that it starts in the background. Child processes would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves eight processes
    "WANDB_ERROR_REPORTING": "false",
}

# The duration of an example depends on the machine's load and says nothing about correctness.
settings.register_profile("untimed", parent=settings(), deadline=None)
settings.load_profile("untimed")

STAGING = "WANDB_DATA_DIR"

# Sinks run in the test's process by default; tests of the delivery process override this.
IN_PROCESS = {"METRICBUS_DELIVERY": "thread", "METRICBUS_LINGER_SECS": "30"}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set a timeout for each test, unless the command line sets one."""
    if config.option.timeout is None:
        config.option.timeout = HANG_SECS


@pytest.fixture(autouse=True, scope="session")
def staging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary staging folder for W&B, instead of the one in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STAGING, str(tmp_path_factory.mktemp("wandb-data")))
        yield


@pytest.fixture(autouse=True)
def _internal_errors() -> Iterator[InternalErrors]:
    errors = InternalErrors()
    with errors.watched():
        yield errors


@pytest.fixture
def internal_errors(_internal_errors: InternalErrors) -> InternalErrors:
    """The internal errors of the test, which expects them."""
    _internal_errors.expected = True
    return _internal_errors


@pytest.fixture(autouse=True)
def clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _internal_errors: InternalErrors
) -> Iterator[None]:
    """A clean environment. Checks afterwards that nothing is left running or has broken."""
    threads_before = set(own_threads())
    marker = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(MARKER, marker)
    for variable in list(os.environ):
        if variable.startswith(("METRICBUS_", "MLFLOW_", "WANDB_")) and variable != STAGING:
            monkeypatch.delenv(variable)
    monkeypatch.delenv("COLUMNS", raising=False)  # set by pytest-xdist in its workers
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # child processes buffer their output
    for name, value in {**QUIET, **IN_PROCESS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))  # where W&B looks for a key
    monkeypatch.chdir(tmp_path)
    yield
    for core in list(shutdown._open_buses):
        assert isinstance(core, BusCore)
        core.bus.close(timeout=5)
    logger = logging.getLogger("metricbus")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    _fail_for_leftovers(threads_before, marker)
    _internal_errors.check()


def _fail_for_leftovers(threads_before: set[threading.Thread], marker: str) -> None:
    """Wait for the threads and processes that the test started. Fail if some do not end."""

    def leftovers() -> list[str]:
        threads = [thread.name for thread in own_threads() if thread not in threads_before]
        return threads + [f"{pid}: {line}" for pid, line in marked_processes(marker).items()]

    deadline = time.monotonic() + scaled(60)
    while leftovers() and time.monotonic() < deadline:
        time.sleep(0.01)
    if remaining := leftovers():
        for pid in marked_processes(marker):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pytest.fail("the test left running: " + "; ".join(remaining), pytrace=False)


@pytest.fixture
def stops_consumers() -> Iterator[None]:
    """Cleanup for tests that leave a consumer with a backend that never answers."""
    yield
    stop_consumers()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def bus(sink: MemorySink, tmp_path: Path) -> Iterator[MetricBus]:
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        yield bus


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server on loopback, with an SQLite database."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    artifacts = ["--artifacts-destination", str(folder / "artifacts")]
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *address, *store, *artifacts],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | QUIET,
        )
    try:
        _wait(lambda: _answers(port), 120.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # includes its workers
        server.wait(HANG_SECS)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """A function that polls a condition until a deadline."""
    return _wait


def _wait(condition: Callable[[], bool], secs: float = 60.0) -> None:
    deadline = time.monotonic() + scaled(secs)
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.005)

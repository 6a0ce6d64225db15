"""What every test starts from: no settings in the environment, an empty folder, silent loggers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from metricbus import MetricBus
from metricbus._bus import shutdown
from metricbus.testing import MemorySink

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that tests have no use for
    "WANDB_ERROR_REPORTING": "false",
}

# How long an example takes is no question of right or wrong, and differs with the machine's load.
settings.register_profile("untimed", parent=settings(), deadline=None)
settings.load_profile("untimed")

STAGING = "WANDB_DATA_DIR"

# Most tests want the sinks at hand; tests of the delivery process say so. None may stay for long.
HERE = {"METRICBUS_DELIVERY": "thread", "METRICBUS_LINGER_SECS": "30"}


@pytest.fixture(autouse=True, scope="session")
def staging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B would stage the files of tables in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STAGING, str(tmp_path_factory.mktemp("wandb-data")))
        yield


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in list(os.environ):
        if variable.startswith(("METRICBUS_", "MLFLOW_", "WANDB_")) and variable != STAGING:
            monkeypatch.delenv(variable)
    monkeypatch.delenv("COLUMNS", raising=False)  # the workers of pytest-xdist set it
    for name, value in {**QUIET, **HERE}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))  # W&B looks for a key there
    monkeypatch.chdir(tmp_path)
    yield
    for bus in list(shutdown._open):
        assert isinstance(bus, MetricBus)
        bus.close(timeout=5)
    logger = logging.getLogger("metricbus")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def bus(sink: MemorySink, tmp_path: Path) -> Iterator[MetricBus]:
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        yield bus


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on loopback with an SQLite database; its address."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    artefacts = ["--artifacts-destination", str(folder / "artefacts")]
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where, *store, *artefacts],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | QUIET,
        )
    try:
        _wait(lambda: _answers(port), 60.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it has workers of its own
        server.wait(30)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Polls a condition to a deadline."""
    return _wait


def _wait(condition: Callable[[], bool], secs: float = 20.0) -> None:
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)

"""What every test starts from: no settings in the environment, an empty folder, silent loggers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metricbus import MetricBus, exits


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in list(os.environ):
        if variable.startswith("METRICBUS_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    yield
    for bus in list(exits._open):
        assert isinstance(bus, MetricBus)
        bus.close(timeout=5)
    logger = logging.getLogger("metricbus")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Polls a condition to a deadline."""

    def wait(condition: Callable[[], bool], secs: float = 20.0) -> None:
        deadline = time.monotonic() + secs
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.005)

    return wait

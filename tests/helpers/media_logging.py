"""Helpers that log media and report what became of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricbus import MetricBus
from metricbus._common.media_base import MediaValue
from metricbus._delivery.report import Report
from metricbus.testing import MemorySink


def report_of(folder: Path, medium: MediaValue) -> Report:
    """Log a medium as `a/b` with a number, and return the statistics after `close()`."""
    with MetricBus(sinks=[MemorySink()], dir=folder) as bus:
        bus.log({"loss": 1.0, "a/b": medium})
    report = bus.stats()
    assert report.journalled + report.dropped == 2
    return report


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of the media logger."""
    return [record.getMessage() for record in caplog.records if record.name == "metricbus.media"]

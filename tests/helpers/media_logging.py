"""Helpers that log media and read them back."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from metricbus import MetricBus
from metricbus._common.media_base import MediaValue
from metricbus._common.media_records import FileRef, MediumRecord
from metricbus._delivery.report import Report
from metricbus.testing import MemorySink

R = TypeVar("R", bound=MediumRecord)


def logged(
    folder: Path, kind: type[R], medium: MediaValue, after: Callable[[], object] | None = None
) -> tuple[R, MemorySink]:
    """Log a medium as `a/b`; return its record and a sink that can read its files.

    `after` is called right after `log()`.
    """
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=folder) as bus:
        bus.log("a/b", medium)
        if after is not None:
            after()
    assert bus.stats().error is None
    (record,) = sink.media("a/b")
    assert isinstance(record, kind)
    return record, sink


def pixels_of(sink: MemorySink, ref: FileRef) -> NDArray[Any]:
    """Return the pixels of a PNG file."""
    with PIL.Image.open(io.BytesIO(sink.files.read(ref))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


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

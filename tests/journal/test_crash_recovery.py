"""Runs whose process died: their final status, and segments that are damaged."""

from __future__ import annotations

from pathlib import Path

import metricbus
from metricbus._history.run_status import current_status
from metricbus._journal.run import RunFolder
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import run_script


def test_run_that_failed_and_died_before_saving_it_is_failed(tmp_path: Path) -> None:
    """The last closed segment has the status that run.json lacks."""
    code = """
        import os
        from metricbus import MetricBus
        from metricbus._journal.run import RunFolder
        bus = MetricBus("r", id="r", dir=".", sinks="")
        bus.log("x", 1.0)
        RunFolder.save = lambda self, run: os._exit(0)
        bus.close("failed")
    """
    run_script(tmp_path, code)
    folder = RunFolder(tmp_path / "r")
    assert folder.load().status == "running"
    assert current_status(folder, folder.load()) == "failed"
    metricbus.deliver(folder.path, "csv", timeout=HANG_SECS)
    assert folder.load().status == "failed"
    assert folder.load().ended is not None


def test_rewind_applies_to_a_segment_whose_header_is_damaged(tmp_path: Path) -> None:
    with metricbus.MetricBus("r", id="r", dir=tmp_path, sinks="") as bus:
        for step in range(6):
            bus.log("x", float(step), step=step)
    segment = tmp_path / "r" / "journal" / "0001.jsonl"
    header, _, rest = segment.read_bytes().partition(b"\n")
    segment.write_bytes(b"?" * len(header) + b"\n" + rest)
    with metricbus.MetricBus("r", id="r", dir=tmp_path, sinks="", resume=True) as bus:
        bus.rewind(2)
        bus.log("x", 30.0, step=3)
    history = metricbus.read(tmp_path / "r")
    assert history.damaged == 1
    assert history.series("x").value.tolist() == [0.0, 1.0, 2.0, 30.0]

"""Counts of dropped values in the journal, which commands report after the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from metricbus import Image, MetricBus
from metricbus._cli.app import app
from metricbus._common.records import Dropped, DroppedCounts, End, decode, encode
from metricbus._journal.dropped_counts import RunDroppedCounts, SegmentDroppedCounts, total_dropped
from metricbus._journal.run import RunFolder
from metricbus._journal.run_summary import summarize_run
from metricbus._journal.segment_writer import SegmentWriter
from tests.helpers.scripts import run_script


def command(name: str, run: Path) -> str:
    done = CliRunner().invoke(app, [name, str(run)])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def reported_by(run: Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["show", str(run), "--json"])
    found: dict[str, Any] = json.loads(done.stdout)["dropped"]
    return found


@pytest.fixture
def run_with_drops(tmp_path: Path) -> tuple[Path, int]:
    """A run whose queue was too small, and the number of values that it dropped."""
    with MetricBus(id="r", sinks=[], dir=tmp_path, queue_size=10, overflow="drop_newest") as bus:
        for step in range(5_000):
            bus.log("loss", 0.5, step=step)
    return tmp_path / "r", bus.stats().dropped


def test_commands_report_values_dropped_by_a_full_queue(run_with_drops: tuple[Path, int]) -> None:
    run, dropped = run_with_drops
    assert dropped > 0
    assert reported_by(run) == {"queue": dropped, "media": 0, "unwritable": 0, "is_final": True}
    line = f"values dropped: {dropped:,} ({dropped:,} because the queue was full)"
    assert line in command("show", run)
    assert f"{dropped:,} dropped" in command("ls", run)


def test_show_reports_a_medium_that_could_not_be_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(picture: object) -> bytes:
        raise MemoryError("no room")

    monkeypatch.setattr(sys.modules["metricbus.media.png"], "png_of", no_room)
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log("picture", Image(np.zeros((4, 4))))
    assert bus.stats().dropped == 1
    assert reported_by(tmp_path / "r")["media"] == 1


def test_run_without_drops_records_zero_and_shows_nothing(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log("loss", 0.5)
    last = (tmp_path / "r" / "journal" / "0001.jsonl").read_bytes().splitlines()[-1]
    assert json.loads(last)["dropped"] == {}
    assert reported_by(tmp_path / "r")["is_final"]
    assert "values dropped" not in command("show", tmp_path / "r")
    assert " dropped" not in command("ls", tmp_path / "r")


def test_dropped_count_of_a_killed_run_is_unknown(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus(id="r", sinks=[], dir=".")
        bus.log("loss", 0.5)
        bus.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert not reported_by(tmp_path / "r")["is_final"]
    assert "values dropped: unknown" in command("show", tmp_path / "r")


def test_live_run_reports_the_values_dropped_so_far(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path, queue_size=10, overflow="drop_newest") as bus:
        while not bus.stats().dropped:
            for step in range(100):
                bus.log("loss", 0.5, step=step)
        bus.flush()
        bus.log("loss", 0.5)
        bus.flush()
        reported = reported_by(tmp_path / "r")
        assert 0 < reported["queue"] <= bus.stats().dropped
        assert not reported["is_final"]
        assert "so far" in command("show", tmp_path / "r")
        lines = (tmp_path / "r" / "journal" / "0001.jsonl").read_bytes().splitlines()
        assert sum(isinstance(decode(line), Dropped) for line in lines) == 1, "not at each drop"


def test_end_record_of_an_earlier_version_has_no_counts() -> None:
    end = decode(b'{"kind":"end","status":"finished","time":1}')
    assert end == End(status="finished", time=1)
    assert not SegmentDroppedCounts([end]).is_final


def test_counts_of_all_segments_are_added(tmp_path: Path) -> None:
    writers = [SegmentWriter(tmp_path, run="r") for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.close(dropped=DroppedCounts(queue=number, media=2))
    segments = [
        SegmentDroppedCounts(map(decode, path.read_bytes().splitlines()))
        for path in tmp_path.iterdir()
    ]
    assert total_dropped(segments) == RunDroppedCounts(queue=1, media=4, is_final=True)


def test_dropped_records_round_trip() -> None:
    for record in (
        Dropped(time=5, dropped=DroppedCounts(queue=3, unwritable=1)),
        End(status="failed", time=5, dropped=DroppedCounts(media=2)),
    ):
        assert decode(encode([record]).rstrip(b"\n")) == record


def test_status_and_summary_report_the_same_counts(run_with_drops: tuple[Path, int]) -> None:
    folder = RunFolder(run_with_drops[0])
    seen = summarize_run(folder, with_courses=False).dropped
    summary = summarize_run(folder).dropped
    assert seen == summary
    assert msgspec.structs.asdict(seen)["queue"] == run_with_drops[1]

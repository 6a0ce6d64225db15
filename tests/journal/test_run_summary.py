"""Run summaries, compared with reading the whole journal."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metricbus
from metricbus import Image, JournalError, MetricBus, Table
from metricbus._cli.run_reader import RunDetails, read_details
from metricbus._common.records import Number, ScalarRow
from metricbus._journal import run_summary
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.run_summary import RunSummary, summarize_run
from metricbus._journal.segment_writer import SegmentWriter
from metricbus._journal.series_stats import BUCKETS, Course
from tests.helpers.scripts import run_script

numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats())


def only_run(folder: Path) -> RunFolder:
    """Return the only run in the folder."""
    (path,) = (file.parent for file in folder.glob("*/run.json"))
    return RunFolder(path)


def summary_of(tmp_path: Path) -> RunSummary:
    return summarize_run(only_run(tmp_path))


def details_of(tmp_path: Path) -> RunDetails:
    return read_details(only_run(tmp_path), with_courses=False)


def row(step: int, **values: Number) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=step, values=values)


def rows_of(folder: Path, batches: Sequence[Sequence[ScalarRow]]) -> RunFolder:
    """Create a run with one more segment per batch of rows."""
    with MetricBus(id="r", sinks="", dir=folder):
        pass
    for batch in batches:
        writer = SegmentWriter(folder / "r" / "journal", run="r")
        writer.append(batch)
        writer.close()
    return RunFolder(folder / "r")


def test_series_summary_has_the_statistics_of_a_series(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step, value in enumerate([3.0, math.nan, -1.0, 2.0]):
            bus.log("loss", value, step=step + 5)
    loss = summary_of(tmp_path).series["loss"]
    assert (loss.count, loss.nan, loss.last) == (4, 1, 2.0)
    assert (loss.min, loss.max, loss.first_step, loss.last_step) == (-1.0, 3.0, 5, 8)
    assert loss.mean == pytest.approx(4 / 3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(numbers, min_size=1, max_size=40), st.integers(1, 7))
def test_series_summary_equals_the_statistics_of_all_values(
    values: list[Number], buffer_size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_summary, "_MAX_BUFFERED_VALUES", buffer_size)
        folder = Path(f"all-{os.urandom(8).hex()}")
        run = rows_of(folder, [[row(step, x=value) for step, value in enumerate(values)]])
        summary = summarize_run(run).series["x"]
    known = [value for value in values if not math.isnan(value)]
    assert summary.count == len(values)
    assert summary.nan == len(values) - len(known)
    assert summary.min == min(known, default=None)
    assert summary.max == max(known, default=None)
    assert summary.last == values[-1] or math.isnan(values[-1])
    if known and all(map(math.isfinite, known)) and max(map(abs, known)) < 1e300:
        assert summary.mean == pytest.approx(math.fsum(known) / len(known), rel=1e-12, abs=1e-290)


def test_mean_is_exact_with_small_and_large_values(tmp_path: Path) -> None:
    values = [1e16, *[1.0] * 1000, -1e16]
    run = rows_of(tmp_path, [[row(step, x=value) for step, value in enumerate(values)]])
    assert summarize_run(run).series["x"].mean == 1000 / 1002


def test_mean_of_both_infinities_is_nan(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [[row(0, x=math.inf), row(1, x=-math.inf)]])
    x = summarize_run(run).series["x"]
    assert (x.min, x.max) == (-math.inf, math.inf)
    assert x.mean is not None
    assert math.isnan(x.mean)


@given(st.lists(st.lists(st.floats(), max_size=300), max_size=8))
def test_course_has_the_extremes_of_every_bucket(parts: list[list[float]]) -> None:
    course = Course()
    for part in parts:
        course.add(part)
    whole = [value for part in parts for value in part]
    extremes = course.extremes()
    assert len(extremes) == -(-len(whole) // course.width) <= BUCKETS
    for index, pair in enumerate(extremes):
        bucket = whole[index * course.width : (index + 1) * course.width]
        finite = [value for value in bucket if math.isfinite(value)]
        assert pair == ((min(finite), max(finite)) if finite else None)


def test_course_keeps_one_peak_in_a_million_values() -> None:
    course = Course()
    course.add([0.0] * 765_432 + [9.0] + [0.0] * 234_567)
    extremes = [pair for pair in course.extremes() if pair is not None]
    assert max(high for _, high in extremes) == 9.0
    assert len(extremes) <= BUCKETS


def test_superseded_values_are_left_out(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", step, step=step)
        bus.rewind(4)
        bus.log("x", 50, step=5)
        folder = bus.dir
    summary = summary_of(tmp_path)
    assert folder is not None
    expected = metricbus.read(folder).series("x").value.tolist()
    assert expected == [0, 1, 2, 3, 4, 50]
    assert (summary.series["x"].count, summary.series["x"].max, summary.superseded) == (6, 50, 5)
    assert (summary.last_step, summary.journal_values) == (5, 11)


def test_names_have_rank_prefixes(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [])
    writer = SegmentWriter(run.journal, run="r", rank=1)
    writer.append([ScalarRow(step=0, epoch=0, time=0, values={"x": 1}, rank=1)])
    writer.close()
    assert list(summarize_run(run).series) == ["rank1/x"]


def test_media_are_counted_by_name_and_kind(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step in range(3):
            bus.log("image", Image(np.zeros((4, 6, 3))), step=step)
        table = Table(columns=["a"], rows=[[1], [2]])
        bus.log("errors", table, step=1)
        table.append([3])
        bus.log("errors", table, step=2)
    media = {medium.name: medium for medium in summary_of(tmp_path).media}
    assert (media["image"].count, media["image"].last_step) == (3, 2)
    assert (media["errors"].count, media["errors"].rows) == (2, 3)


def test_damaged_and_torn_lines_are_counted(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [[row(0, x=1)]])
    with open(run.journal / "0002.jsonl", "ab") as file:
        file.write(b'not a record\n{"kind":"sca')
    summary = summarize_run(run)
    assert (summary.damaged, summary.torn, summary.values) == (1, 12, 1)


def test_progress_is_reported_in_bytes(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [[row(step, x=1) for step in range(12_000)]])
    reports: list[tuple[int, int]] = []
    summarize_run(run, lambda done, total: reports.append((done, total)))
    assert reports == sorted(reports)
    assert len(reports) > 3
    assert (
        reports[-1][0]
        == reports[-1][1]
        == sum(file.stat().st_size for file in run.journal.iterdir())
    )


def test_a_run_without_a_journal_raises(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [])
    (run.journal / "0001.jsonl").unlink()
    run.journal.rmdir()
    with pytest.raises(JournalError, match="is missing"):
        summarize_run(run)


KILLED = """
    import os, signal
    from metricbus import MetricBus
    bus = MetricBus(id="r", sinks="csv", dir=".")
    bus.define("mean", every=100, reduce="mean")
    for step in range(20):
        bus.log({"loss": step / 2, "mean": step}, step=step)
    bus.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_whose_process_died_without_an_end_record_is_killed(tmp_path: Path) -> None:
    assert run_script(tmp_path, KILLED).returncode == -signal.SIGKILL
    assert RunFolder(tmp_path / "r").load().status == "running"
    details = details_of(tmp_path)
    last = details.summary.series["loss"].last
    assert (details.status, details.summary.last_step, last) == ("killed", 19, 9.5)
    assert RunFolder(tmp_path / "r").load().status == "running", (
        "reading the status does not change it"
    )


def test_a_live_run_is_running(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
        bus.flush()
        assert details_of(tmp_path).status == "running"
    assert details_of(tmp_path).status == "finished"


def test_a_run_on_another_host_is_silent_after_a_minute_without_writes(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [])
    run.save(_on_another_host(run))
    assert read_details(run).status == "finished", "all segments have an end record"
    with open(run.journal / "0002.jsonl", "wb") as file:
        file.write((run.journal / "0001.jsonl").read_bytes().split(b"\n")[0] + b"\n")
    assert read_details(run).status == "running", "the journal was just written to"
    for segment in run.journal.iterdir():
        os.utime(segment, (1e9, 1e9))
    assert read_details(run).status == "silent"


def _on_another_host(run: RunFolder) -> Run:
    return msgspec.structs.replace(run.load(), host="elsewhere", status="running", ended=None)


def test_details_have_the_step_the_epoch_and_the_sinks(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for epoch in bus.epochs(2, progress=False):
            for step in bus.steps(range(3), progress=False):
                bus.log("loss", 10 * epoch + step)
            bus.log("acc", epoch / 2)
    details = details_of(tmp_path)
    summary = details.summary
    assert (summary.last_step, summary.last_epoch) == (5, 1)
    assert (summary.series["loss"].last, summary.series["acc"].last) == (12, 0.5)
    assert [(sink.sink, sink.is_complete) for sink in details.sinks] == [("csv", True)]


@settings(max_examples=25)
@given(st.data())
def test_a_journal_truncated_anywhere_can_be_read(data: st.DataObject) -> None:
    folder = Path(f"cut-{os.urandom(8).hex()}")
    run = rows_of(folder, [[row(step, x=step) for step in range(4)]])
    segment = run.journal / "0002.jsonl"
    whole = segment.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    segment.write_bytes(whole[:cut])
    summary = summarize_run(run)
    rows = max(0, min(4, whole[:cut].count(b"\n") - 1))
    assert (summary.rows, summary.values) == (rows, rows)
    assert [series.last for series in summary.series.values()] == [rows - 1][: rows > 0]

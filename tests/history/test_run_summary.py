"""What is known of a run in a few numbers a name, against reading all of it."""

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
from metricbus._common.records import Number, Scalars
from metricbus._history import series_summary
from metricbus._history.run_status import RunStatus, read_run_status
from metricbus._history.run_summary import RunSummary, summarize_run
from metricbus._history.sparkline import BUCKETS, SparklineData
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_writer import SegmentWriter
from tests.helpers.scripts import run_script

numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats())


def made(folder: Path) -> RunFolder:
    """The only run in the folder."""
    (path,) = (file.parent for file in folder.glob("*/run.json"))
    return RunFolder(path)


def summary_of(tmp_path: Path) -> RunSummary:
    return summarize_run(made(tmp_path))


def glance_of(tmp_path: Path) -> RunStatus:
    folder = made(tmp_path)
    return read_run_status(folder, folder.load())


def row(step: int, **values: Number) -> Scalars:
    return Scalars(step=step, epoch=0, time=step, values=values)


def rows_of(folder: Path, batches: Sequence[Sequence[Scalars]]) -> RunFolder:
    """A run with a segment for each batch of rows."""
    with MetricBus(id="r", sinks="", dir=folder):
        pass
    for batch in batches:
        writer = SegmentWriter(folder / "r" / "journal", run="r")
        writer.append(batch)
        writer.close()
    return RunFolder(folder / "r")


def test_a_series_is_known_by_a_few_numbers(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step, value in enumerate([3.0, math.nan, -1.0, 2.0]):
            bus.log("loss", value, step=step + 5)
    loss = summary_of(tmp_path).series["loss"]
    assert (loss.count, loss.nan, loss.last) == (4, 1, 2.0)
    assert (loss.min, loss.max, loss.first_step, loss.last_step) == (-1.0, 3.0, 5, 8)
    assert loss.mean == pytest.approx(4 / 3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(numbers, min_size=1, max_size=40), st.integers(1, 7))
def test_it_is_what_reading_all_gives(values: list[Number], held: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_summary, "_HELD_AT_MOST", held)
        folder = Path(f"all-{os.urandom(8).hex()}")
        run = rows_of(folder, [[row(step, x=value) for step, value in enumerate(values)]])
        found = summarize_run(run).series["x"]
    known = [value for value in values if not math.isnan(value)]
    assert found.count == len(values)
    assert found.nan == len(values) - len(known)
    assert found.min == min(known, default=None)
    assert found.max == max(known, default=None)
    assert found.last == values[-1] or math.isnan(values[-1])
    if known and all(map(math.isfinite, known)) and max(map(abs, known)) < 1e300:
        assert found.mean == pytest.approx(math.fsum(known) / len(known), rel=1e-12, abs=1e-290)


def test_small_terms_survive_beside_large_ones(tmp_path: Path) -> None:
    values = [1e16, *[1.0] * 1000, -1e16]
    run = rows_of(tmp_path, [[row(step, x=value) for step, value in enumerate(values)]])
    assert summarize_run(run).series["x"].mean == 1000 / 1002


def test_the_mean_of_both_infinities_is_no_number(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [[row(0, x=math.inf), row(1, x=-math.inf)]])
    x = summarize_run(run).series["x"]
    assert (x.min, x.max) == (-math.inf, math.inf)
    assert x.mean is not None
    assert math.isnan(x.mean)


@given(st.lists(st.lists(st.floats(), max_size=300), max_size=8))
def test_a_curve_keeps_every_extreme_in_its_place(parts: list[list[float]]) -> None:
    curve = SparklineData()
    for part in parts:
        curve.add(np.array(part, dtype=np.float64))
    whole = np.array([value for part in parts for value in part], dtype=np.float64)
    whole[~np.isfinite(whole)] = np.nan
    assert len(curve.low) == -(-len(whole) // curve.width) <= BUCKETS
    for place, (low, high) in enumerate(zip(curve.low, curve.high, strict=True)):
        bucket = whole[place * curve.width : (place + 1) * curve.width]
        np.testing.assert_equal(low, np.fmin.reduce(bucket))
        np.testing.assert_equal(high, np.fmax.reduce(bucket))


def test_one_peak_among_a_million_values_stays() -> None:
    curve = SparklineData()
    values = np.zeros(1_000_000)
    values[765_432] = 9.0
    curve.add(values)
    assert curve.high.max() == 9.0
    assert len(curve.high) <= BUCKETS


def test_what_a_rewind_goes_back_before_is_left_out(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step in range(10):
            bus.log("x", step, step=step)
        bus.rewind(4)
        bus.log("x", 50, step=5)
        folder = bus.folder
    found = summary_of(tmp_path)
    assert folder is not None
    expected = metricbus.read(folder).series("x").value.tolist()
    assert expected == [0, 1, 2, 3, 4, 50]
    assert (found.series["x"].count, found.series["x"].max, found.superseded) == (6, 50, 5)
    assert (found.last_step, found.journal_values) == (5, 11)


def test_ranks_are_told_apart(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [])
    writer = SegmentWriter(run.journal, run="r", rank=1)
    writer.append([Scalars(step=0, epoch=0, time=0, values={"x": 1}, rank=1)])
    writer.close()
    assert list(summarize_run(run).series) == ["rank1/x"]


def test_media_are_counted_by_name_and_kind(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for step in range(3):
            bus.log("seen", Image(np.zeros((4, 6, 3))), step=step)
        table = Table(columns=["a"], rows=[[1], [2]])
        bus.log("errors", table, step=1)
        table.append([3])
        bus.log("errors", table, step=2)
    found = {one.name: one for one in summary_of(tmp_path).media}
    assert (found["seen"].count, found["seen"].last_step) == (3, 2)
    assert (found["errors"].count, found["errors"].rows) == (2, 3)


def test_damaged_and_torn_lines_are_counted(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [[row(0, x=1)]])
    with open(run.journal / "0002.jsonl", "ab") as file:
        file.write(b'no record\n{"kind":"sca')
    found = summarize_run(run)
    assert (found.damaged, found.torn, found.values) == (1, 12, 1)


def test_progress_is_told_in_bytes_up_to_all(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [[row(step, x=1) for step in range(12_000)]])
    told: list[tuple[int, int]] = []
    summarize_run(run, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert len(told) > 3
    assert told[-1][0] == told[-1][1] == sum(file.stat().st_size for file in run.journal.iterdir())


def test_a_run_without_a_journal_is_told(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [])
    (run.journal / "0001.jsonl").unlink()
    run.journal.rmdir()
    with pytest.raises(JournalError, match="is missing"):
        summarize_run(run)
    with pytest.raises(JournalError, match="is missing"):
        read_run_status(run, run.load())


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


def test_a_run_whose_process_died_without_an_end_is_killed(tmp_path: Path) -> None:
    assert run_script(tmp_path, KILLED).returncode == -signal.SIGKILL
    assert RunFolder(tmp_path / "r").load().status == "running"
    seen = glance_of(tmp_path)
    assert (seen.status, seen.step, seen.last["loss"]) == ("killed", 19, 9.5)
    assert RunFolder(tmp_path / "r").load().status == "running", "a look changes nothing"


def test_a_live_run_is_running(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
        bus.flush()
        assert glance_of(tmp_path).status == "running"
    assert glance_of(tmp_path).status == "finished"


def test_a_run_of_a_host_that_is_silent_is_not_taken_for_a_live_one(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [])
    run.save(_elsewhere(run))
    assert read_run_status(run, run.load()).status == "finished", "its segments are ended"
    with open(run.journal / "0002.jsonl", "wb") as file:
        file.write((run.journal / "0001.jsonl").read_bytes().split(b"\n")[0] + b"\n")
    assert read_run_status(run, run.load()).status == "running", "it was written to just now"
    for segment in run.journal.iterdir():
        os.utime(segment, (1e9, 1e9))
    assert read_run_status(run, run.load()).status == "silent"


def _elsewhere(run: RunFolder) -> Run:
    return msgspec.structs.replace(run.load(), host="elsewhere", status="running", ended=None)


def test_a_glance_knows_the_newest_values_and_the_step(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for epoch in bus.epochs(2, progress=False):
            for step in bus.steps(range(3), progress=False):
                bus.log("loss", 10 * epoch + step)
            bus.log("acc", epoch / 2)
    seen = glance_of(tmp_path)
    assert (seen.step, seen.epoch, seen.last["loss"], seen.last["acc"]) == (5, 1, 12, 0.5)
    assert seen.is_exact
    assert seen.values == summary_of(tmp_path).values
    assert [(sink.sink, sink.is_complete) for sink in seen.sinks] == [("csv", True)]


def test_a_glance_does_not_show_what_was_rewound(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log("kept", 1, step=2)
        bus.log("gone", 2, step=7)
        bus.rewind(4)
    seen = glance_of(tmp_path)
    assert (seen.step, seen.last) == (4, {"kept": 1})


def test_of_a_long_run_the_ends_are_read_and_the_count_is_an_estimate(tmp_path: Path) -> None:
    run = rows_of(tmp_path, [[row(step, x=step, y=0.5) for step in range(20_000)]])
    seen = read_run_status(run, run.load())
    assert (seen.step, seen.last) == (19_999, {"x": 19_999, "y": 0.5})
    assert not seen.is_exact
    assert seen.values == pytest.approx(40_000, rel=0.05)


def test_a_sink_that_has_everything_makes_the_count_exact(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for step in range(5_000):
            bus.log("x", step, step=step)
    seen = glance_of(tmp_path)
    assert (seen.values, seen.is_exact) == (5_000 + len(_others(tmp_path)), True)


def _others(tmp_path: Path) -> list[str]:
    return [name for name in summary_of(tmp_path).series if name != "x"]


def test_a_row_that_is_longer_than_the_look_is_still_seen(tmp_path: Path) -> None:
    wide = Scalars(step=7, epoch=0, time=7, values={f"name/{n}": n for n in range(10_000)})
    run = rows_of(tmp_path, [[wide]])
    assert len(read_run_status(run, run.load()).last) == 10_000


@settings(max_examples=25)
@given(st.data())
def test_a_journal_that_is_cut_anywhere_can_be_read(data: st.DataObject) -> None:
    folder = Path(f"cut-{os.urandom(8).hex()}")
    run = rows_of(folder, [[row(step, x=step) for step in range(4)]])
    segment = run.journal / "0002.jsonl"
    whole = segment.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    segment.write_bytes(whole[:cut])
    found, seen = summarize_run(run), read_run_status(run, run.load())
    rows = max(0, min(4, whole[:cut].count(b"\n") - 1))
    assert found.rows == rows
    assert (seen.values, seen.is_exact) == (rows, True)
    assert seen.last.get("x") == (rows - 1 if rows else None)

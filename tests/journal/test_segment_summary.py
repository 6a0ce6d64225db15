"""The summaries that are kept beside the journal, compared with reading the whole journal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricbus import MetricBus
from metricbus._common.files import AppendFile
from metricbus._common.media_records import FileRef, TextRecord
from metricbus._common.records import (
    Dropped,
    DroppedCounts,
    Epoch,
    Header,
    PartialAggregates,
    Record,
    Rewind,
    ScalarRow,
    with_rank,
)
from metricbus._history.history import History
from metricbus._history.name_filter import NameFilter
from metricbus._journal import run_summary, segment_summary
from metricbus._journal.rewind import find_rewinds
from metricbus._journal.run import RunFolder, create_run
from metricbus._journal.run_summary import RunSummary, summarize_run
from metricbus._journal.segment_reader import JournalReader
from metricbus._journal.segment_writer import SegmentWriter

names = st.sampled_from(["a", "b", "val/c", "ü"])
steps = st.integers(0, 30)
values = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats())
rows = st.builds(
    ScalarRow,
    step=steps,
    epoch=st.integers(0, 3),
    time=st.integers(0, 100),
    values=st.dictionaries(names, values, min_size=1),
)
texts = st.builds(
    TextRecord,
    name=names,
    step=steps,
    epoch=st.integers(0, 3),
    time=st.integers(0, 100),
    file=st.just(FileRef("media/t.md", 1, "0")),
    length=st.just(1),
    start=st.just("t"),
)
others = st.one_of(
    st.builds(Epoch, step=steps, epoch=st.integers(0, 5), time=st.integers(0, 100)),
    st.builds(PartialAggregates, time=st.just(1), rows=st.lists(rows, max_size=2)),
    st.builds(Dropped, time=st.just(1), dropped=st.builds(DroppedCounts, queue=st.integers(0, 9))),
    st.builds(Rewind, step=steps, epoch=st.just(0), time=st.integers(0, 100)),
    texts,
)
# Mostly rows, as in a real journal.
batches = st.lists(st.one_of(rows, rows, rows, others), min_size=1, max_size=8)


class Segment(msgspec.Struct):
    """What one process writes: batches of records; whether it closes its segment."""

    rank: int
    attempt: int
    batches: list[list[Any]]
    is_closed: bool


segments = st.builds(
    Segment,
    rank=st.integers(0, 1),
    attempt=st.integers(1, 3),
    batches=st.lists(batches, max_size=12),
    is_closed=st.booleans(),
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of a few lines, and use them in every summary."""
    monkeypatch.setattr(segment_summary, "_MIN_BYTES", 200)
    monkeypatch.setattr(segment_summary, "_MIN_VALUES_PER_SERIES", 1)
    monkeypatch.setattr(segment_summary, "_MAX_ROWS", 3)
    monkeypatch.setattr(run_summary, "_MIN_BYTES_WITH_BLOCKS", 0)


def make_run(written: Sequence[Segment]) -> RunFolder:
    folder, run = create_run(Path("runs"), id=f"r{os.urandom(8).hex()}", name="r", config={})
    for segment in written:
        writer = SegmentWriter(folder.journal, run.id, segment.rank, segment.attempt)
        for batch in segment.batches:
            writer.append([with_rank(record, segment.rank) for record in batch])
        if segment.is_closed:
            writer.close()
        else:
            writer._file.close()  # as if the process had died
    return folder


def make_rows(count: int, **other: float) -> list[ScalarRow]:
    return [
        ScalarRow(step, step // 50, step, {"a": float(step % 7), "b": step, **other})
        for step in range(count)
    ]


def long_run(count: int = 200) -> RunFolder:
    batches = [[row] for row in make_rows(count)]
    return make_run([Segment(0, 1, batches, is_closed=True)])


def without_summary(folder: RunFolder) -> RunFolder:
    """Return a copy of the run without the summaries of its segments."""
    copy = folder.path.with_name(f"{folder.path.name}-copy")
    shutil.copytree(folder.path, copy)
    shutil.rmtree(copy / "summary", ignore_errors=True)
    return RunFolder(copy)


def blocks_of(folder: RunFolder, segment: str = "0001") -> list[segment_summary.Block]:
    return list(JournalReader(folder.journal).blocks(segment))


def comparable(summary: RunSummary) -> str:
    """Return everything in a summary but the courses; as text, in which NaN equals NaN."""
    fields = msgspec.structs.asdict(summary)
    fields["series"] = [
        (
            {**msgspec.structs.asdict(series), "course": None, "mean": None},
            None if series.mean is None else f"{series.mean:.12g}",
        )
        for series in summary.series.values()
    ]
    return str(fields)


@settings(max_examples=80)
@given(st.lists(segments, min_size=1, max_size=3))
def test_a_kept_summary_equals_that_of_the_whole_journal(written: list[Segment]) -> None:
    folder = make_run(written)
    kept, whole = summarize_run(folder), summarize_run(without_summary(folder))
    assert comparable(kept) == comparable(whole)


@settings(max_examples=60)
@given(st.lists(segments, min_size=1, max_size=3), st.sampled_from(["a", "*a", "val/*", "rank1/*"]))
def test_selected_series_equal_those_of_the_whole_journal(
    written: list[Segment], glob: str
) -> None:
    folder = make_run(written)
    selected = History(folder, scalars=NameFilter([glob]))
    whole = History(without_summary(folder))
    matching = [name for name in whole.names() if NameFilter([glob]).matches(name)]
    assert selected.names() == matching
    for name in matching:
        for column, expected in zip(selected.series(name), whole.series(name), strict=True):
            np.testing.assert_array_equal(column, expected)
    partial = [
        {
            name: repr(value)
            for name, value in row.values.items()
            if NameFilter([glob]).matches(name)
        }
        for row in whole.partial
    ]
    found = [{name: repr(value) for name, value in row.values.items()} for row in selected.partial]
    assert found == list(filter(None, partial))


@settings(max_examples=60)
@given(st.lists(segments, min_size=1, max_size=3))
def test_thinned_series_have_the_ends_and_extremes_of_all_values(written: list[Segment]) -> None:
    folder = make_run(written)
    thinned = History(folder, scalars=NameFilter(), thinned=True)
    whole = History(without_summary(folder))
    assert thinned.names() == whole.names()
    for name in whole.names():
        few, all_values = thinned.series(name), whole.series(name)
        assert set(zip(few.step.tolist(), map(repr, few.value.tolist()), strict=True)) <= set(
            zip(all_values.step.tolist(), map(repr, all_values.value.tolist()), strict=True)
        )
        np.testing.assert_equal(np.fmin.reduce(few.value), np.fmin.reduce(all_values.value))
        np.testing.assert_equal(np.fmax.reduce(few.value), np.fmax.reduce(all_values.value))
        np.testing.assert_equal(few.step.min(), all_values.step.min())
        np.testing.assert_equal(few.step.max(), all_values.step.max())


def test_a_long_series_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = long_run(20_000)
    thinned = History(folder, scalars=NameFilter(["a"]), thinned=True)
    assert thinned.names() == ["a"]
    assert len(thinned.series("a")) < 18_000
    assert {*thinned.series("a").value.tolist()} == {float(value) for value in range(7)}


def test_a_summary_reads_little_of_a_long_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = long_run(2_000)
    lines = read_lines(monkeypatch)
    assert summarize_run(folder).rows == 2_000
    assert len(lines) < 50


def test_rewinds_and_rare_series_are_found_without_reading_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[list[Record]] = [[row] for row in make_rows(2_000)]
    batches[1_000] = [ScalarRow(1_000, 0, 0, {"rare": 1.0}), Rewind(step=1_500, epoch=0, time=0)]
    folder = make_run([Segment(0, 1, batches, is_closed=True)])
    lines = read_lines(monkeypatch)
    assert find_rewinds(folder.journal)
    assert History(folder, scalars=NameFilter(["rare"])).series("rare").value.tolist() == [1.0]
    assert len(lines) < 100


def read_lines(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list to which each line that is decoded from now on is added."""
    lines: list[bytes] = []
    decode = JournalReader._decode

    def note(self: JournalReader, line: bytes, segment: str) -> Record | None:
        lines.append(line)
        return decode(self, line, segment)

    monkeypatch.setattr(JournalReader, "_decode", note)
    return lines


def _truncate(summary: Path) -> None:
    os.truncate(summary, summary.stat().st_size - 10)


def _empty(summary: Path) -> None:
    os.truncate(summary, 0)


def _garble(summary: Path) -> None:
    summary.write_bytes(b"\xff\x00{}\n" + summary.read_bytes())


def _drop_a_block(summary: Path) -> None:
    lines = summary.read_bytes().splitlines(keepends=True)
    summary.write_bytes(b"".join(lines[:2] + lines[3:]))


def _replace_by_a_folder(summary: Path) -> None:
    summary.unlink()
    summary.mkdir()


def _of_another_run(summary: Path) -> None:
    batches = [[row] for row in make_rows(300, c=1.0)]
    other = make_run([Segment(0, 1, batches, is_closed=True)])
    shutil.copy(other.path / "summary" / summary.name, summary)


@pytest.mark.parametrize(
    "damage",
    [_truncate, _empty, _garble, _drop_a_block, _replace_by_a_folder, _of_another_run],
)
def test_a_damaged_summary_is_made_again_from_the_journal(damage: Any) -> None:
    folder = long_run()
    expected = comparable(summarize_run(without_summary(folder)))
    damage(folder.path / "summary" / "0001.jsonl")
    assert comparable(summarize_run(folder)) == expected


def test_a_summary_older_than_the_journal_is_completed_from_it() -> None:
    folder = long_run()
    n_blocks = len(blocks_of(folder))
    with open(folder.journal / "0001.jsonl", "ab") as file:
        file.write(b'{"kind":"scalars","step":500,"epoch":0,"time":9,"values":{"a":99}}\n')
    assert len(blocks_of(folder)) == n_blocks > 3
    summary = summarize_run(folder)
    assert (summary.rows, summary.last_step, summary.series["a"].max) == (201, 500, 99)


def test_a_summary_longer_than_the_journal_counts_as_far_as_it_fits() -> None:
    folder = long_run()
    segment = folder.journal / "0001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:101]))
    assert summarize_run(folder).rows == 100
    segment.write_bytes(b"".join([*lines[:50], *lines[51:]]))
    assert summarize_run(folder).rows == 199


@given(data=st.data())
@settings(max_examples=60)
def test_any_change_of_a_summary_leaves_the_journal_readable(data: st.DataObject) -> None:
    folder = long_run(60)
    path = folder.path / "summary" / "0001.jsonl"
    content = bytearray(path.read_bytes())
    for place, byte in data.draw(st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1)))):
        content[int(place * len(content))] = byte[0]
    path.write_bytes(content)
    summarize_run(folder)
    History(folder, scalars=NameFilter(["a"]), thinned=True)
    assert History(folder).series("b").value.tolist() == list(range(60))


def test_a_run_folder_without_permission_for_summaries_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(segment_summary, "AppendFile", refuse)
    folder = long_run()
    assert not (folder.path / "summary" / "0001.jsonl").exists()
    assert summarize_run(folder).rows == 200


def test_a_block_that_could_not_be_written_becomes_part_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: Iterator[bool] = iter([True, True])
    append = AppendFile.append

    def fail_twice(file: Any, data: bytes) -> None:
        if file.path.parent.name == "summary" and next(failures, False):
            raise OSError(28, "No space left on device")
        append(file, data)

    monkeypatch.setattr(AppendFile, "append", fail_twice)
    folder = long_run()
    blocks = blocks_of(folder)
    assert blocks[0].end_line > blocks[1].end_line - blocks[0].end_line
    assert comparable(summarize_run(folder)) == comparable(summarize_run(without_summary(folder)))


def test_an_error_in_the_statistics_does_not_affect_the_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    for count in (200, 1):  # fails when a block is complete, and when the segment is closed
        monkeypatch.setattr(segment_summary, "stats_of", fail)
        folder = long_run(count)
        monkeypatch.undo()
        assert summarize_run(folder).rows == count


def test_the_largest_steps_are_summarized(tmp_path: Path) -> None:
    batches = [[ScalarRow(2**63 - 1 - step, 0, step, {"a": 1.0})] for step in range(200)]
    series = summarize_run(make_run([Segment(0, 1, batches, is_closed=True)])).series["a"]
    assert (series.first_step, series.last_step) == (2**63 - 200, 2**63 - 1)


def test_a_bus_keeps_a_summary(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for step in range(500):
            bus.log("loss", 1 / (step + 1), step=step)
    folder = RunFolder(tmp_path / "r")
    assert sum(block.rows for block in blocks_of(folder)) == 500
    first = next(JournalReader(folder.journal).rows((Header,))).record
    assert isinstance(first, Header)

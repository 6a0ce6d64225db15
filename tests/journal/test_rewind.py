"""Which rows a rewind supersedes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricbus._common.records import Header, Record, Rewind, ScalarRow, encode
from metricbus._journal.rewind import Rewinds, find_rewinds
from metricbus._journal.segment_reader import Row
from metricbus._journal.segment_summary import Block, LineRange


def header(segment: str, attempt: int = 1) -> Header:
    return Header(1, "r", segment, "host", 1, 0, 0, attempt=attempt)


def row(step: int, time: int = 0) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=time, values={"x": 1.0})


def rewind(step: int, time: int = 0, **position: Any) -> Rewind:
    return Rewind(step=step, epoch=0, time=time, **position)


def rewinds(**segments: list[Record]) -> Rewinds:
    """Return the rewinds of segments, each a list of records from line 0 on."""
    return Rewinds(
        Row(segment, line, 0, record)
        for segment, records in segments.items()
        for line, record in enumerate(records)
    )


def block(first: int, rows: list[ScalarRow]) -> Block:
    """Return the statistics of rows in consecutive lines from `first` on."""
    steps, times = [one.step for one in rows], [one.time for one in rows]
    return Block(
        LineRange(first, 0, 0),
        first + len(rows),
        header=0,
        min_step=min(steps),
        max_step=max(steps),
        min_time=min(times),
        max_time=max(times),
    )


def test_run_without_rewinds_is_false() -> None:
    assert not rewinds(a=[header("a"), row(5)])
    assert rewinds(a=[header("a"), rewind(5)])


@pytest.mark.parametrize(("step", "is_superseded"), [(4, False), (5, False), (6, True)])
def test_supersedes_earlier_rows_at_greater_steps(step: int, is_superseded: bool) -> None:
    found = rewinds(a=[header("a"), row(step), rewind(5)])
    assert found.supersedes("a", 1, row(step)) is is_superseded


def test_keeps_later_rows_of_its_segment() -> None:
    found = rewinds(a=[header("a"), row(9), rewind(5), row(9)])
    assert [found.supersedes("a", line, row(9)) for line in (1, 2, 3)] == [True, False, False]


def test_any_of_several_rewinds_supersedes_a_row() -> None:
    found = rewinds(a=[header("a"), row(9), rewind(20), rewind(5), rewind(20)])
    assert found.supersedes("a", 1, row(9))


@pytest.mark.parametrize(("time", "is_superseded"), [(99, True), (100, True), (101, False)])
def test_compares_times_with_other_segments_of_the_attempt(time: int, is_superseded: bool) -> None:
    found = rewinds(a=[header("a"), rewind(5, time=100)], b=[header("b"), row(9, time)])
    assert found.supersedes("b", 1, row(9, time)) is is_superseded
    assert not found.supersedes("b", 1, row(5, time))


@pytest.mark.parametrize(("attempt", "is_superseded"), [(1, True), (2, True), (4, False)])
def test_ignores_the_times_of_other_attempts(attempt: int, is_superseded: bool) -> None:
    found = rewinds(a=[header("a", attempt)], b=[header("b", 3), rewind(5, time=100)])
    for time in (0, 1000):
        assert found.supersedes("a", 1, row(9, time)) is is_superseded


def test_segment_without_a_header_is_of_the_first_attempt() -> None:
    found = rewinds(b=[header("b", 2), rewind(5, time=100)])
    assert found.supersedes("a", 1, row(9, time=1000))
    found = rewinds(b=[rewind(5, time=100)])
    assert found.supersedes("a", 1, row(9, time=100))
    assert not found.supersedes("a", 1, row(9, time=1000))


@pytest.mark.parametrize(("line", "is_superseded"), [(6, False), (7, True), (8, True)])
def test_supersedes_everything_behind_the_checkpoint_in_its_segment(
    line: int, is_superseded: bool
) -> None:
    position: dict[str, Any] = {"attempt": 1, "segment": "a", "line": 7}
    found = rewinds(a=[header("a")], b=[header("b", 2), rewind(5, **position)])
    assert found.supersedes("a", line, row(3)) is is_superseded
    assert not found.supersedes("c", line, row(3))


@pytest.mark.parametrize(("attempt", "expected"), [(1, ["b", "c", "d"]), (2, ["c", "d"])])
def test_supersedes_the_attempts_after_that_of_the_checkpoint(
    attempt: int, expected: list[str]
) -> None:
    position: dict[str, Any] = {"attempt": attempt, "segment": "a", "line": 7}
    segments: dict[str, list[Record]] = {
        name: [header(name, attempt)] for attempt, name in enumerate("abcde", start=1)
    }
    segments["e"].append(rewind(5, time=100, **position))
    segments["f"] = [header("f", 5)]
    segments["g"] = [header("g", 6)]
    found = rewinds(**segments)
    superseded = [name for name in "abcdefg" if found.supersedes(name, 1, row(3))]
    assert superseded == expected


def test_rewind_without_a_checkpoint_keeps_lower_steps_of_other_attempts() -> None:
    found = rewinds(a=[header("a", 1)], b=[header("b", 2)], c=[header("c", 3), rewind(5)])
    assert not found.supersedes("a", 1, row(3))
    assert not found.supersedes("b", 1, row(3))


def test_partial_row_follows_the_rewinds_of_its_own_segment() -> None:
    found = rewinds(a=[header("a"), rewind(5)])
    assert not found.supersedes_partial("a", row(9))


def test_partial_row_is_superseded_by_a_rewind_of_the_next_attempt() -> None:
    found = rewinds(a=[header("a")], b=[header("b", 2), rewind(5)])
    assert found.supersedes_partial("a", row(6))
    assert not found.supersedes_partial("a", row(5))


def test_partial_row_is_behind_any_checkpoint_in_its_segment() -> None:
    position: dict[str, Any] = {"attempt": 1, "segment": "a", "line": 1 << 61}
    found = rewinds(a=[header("a")], b=[header("b", 2), rewind(5, **position)])
    assert found.supersedes_partial("a", row(3))


@given(st.data())
def test_blocks_are_judged_like_their_rows(data: st.DataObject) -> None:
    number, segment = st.integers(0, 5), st.sampled_from("abc")
    attempts = {"a": 1, "b": 2, "c": 3}
    rows = [Row(name, 0, 0, header(name, attempt)) for name, attempt in attempts.items()]
    for _ in range(data.draw(st.integers(1, 3))):
        position: dict[str, Any] = data.draw(
            st.fixed_dictionaries({"segment": segment, "line": number})
        )
        position["attempt"] = data.draw(st.sampled_from([0, attempts[position["segment"]]]))
        record = rewind(data.draw(number), data.draw(number), **position)
        rows.append(Row(data.draw(segment), data.draw(st.integers(1, 5)), 0, record))
    found = Rewinds(rows)

    first = data.draw(number)
    scalars = data.draw(st.lists(st.builds(row, number, number), min_size=1, max_size=4))
    name = data.draw(segment)
    expected = {found.supersedes(name, line, one) for line, one in enumerate(scalars, first)}
    judged = found.supersedes_block(name, block(first, scalars))
    assert expected == {judged} or (judged is None and len(scalars) > 1)


@pytest.mark.parametrize(
    ("segment", "first", "rows"),
    [
        ("a", 2, [row(5), row(6)]),  # by their steps
        ("a", 8, [row(9), row(9)]),  # by their lines, as the rewind is in line 9
        ("b", 1, [row(9, time=100), row(9, time=101)]),  # by their times
        ("old", 6, [row(1), row(1)]),  # by their lines, as the checkpoint is in line 7
    ],
)
def test_block_that_is_superseded_in_part_needs_a_closer_look(
    segment: str, first: int, rows: list[ScalarRow]
) -> None:
    records: list[Record] = [header("a", 2), *map(row, range(1, 9))]
    record = rewind(5, time=100, attempt=1, segment="old", line=7)
    found = rewinds(old=[header("old")], b=[header("b", 2)], a=[*records, record])
    superseded = [found.supersedes(segment, line, one) for line, one in enumerate(rows, first)]
    assert sorted(superseded) == [False, True]
    assert found.supersedes_block(segment, block(first, rows)) is None


def test_block_at_lower_or_equal_steps_needs_no_closer_look() -> None:
    found = rewinds(a=[header("a"), row(4), row(5), rewind(5)])
    assert found.supersedes_block("a", block(1, [row(4), row(5)])) is False


def test_rewinds_are_found_in_the_segments_of_a_journal(tmp_path: Path) -> None:
    named_like_a_rewind = ScalarRow(step=9, epoch=0, time=0, values={"rewind": 1.0})
    (tmp_path / "0001.jsonl").write_bytes(
        encode([header("0001"), named_like_a_rewind, row(9), rewind(5), row(9)])
        + b'{"kind": damaged "rewind"}\n'
    )
    (tmp_path / "0002.jsonl").write_bytes(encode([header("0002", 3), rewind(7, attempt=1)]))
    found = find_rewinds(tmp_path)
    assert [found.supersedes("0001", line, row(6)) for line in (2, 4)] == [True, False]
    assert found.supersedes("0001", 4, row(8, time=1))  # by the third attempt
    assert not found.supersedes("0003", 4, row(7, time=1))


def test_rewind_in_a_torn_line_does_not_count(tmp_path: Path) -> None:
    torn = encode([header("0001"), row(9), rewind(5)]).removesuffix(b"\n")
    (tmp_path / "0001.jsonl").write_bytes(torn)
    assert not find_rewinds(tmp_path)

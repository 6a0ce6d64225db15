"""Writing and reading the journal: exactness, atomic appends, torn and damaged lines."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricbus._common.records import End, Header, ScalarRow, decode, encode
from metricbus._journal.segment_reader import JournalReader, Position
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.errors import JournalError
from tests.helpers.limits import HANG_SECS

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats())
rows = st.builds(
    ScalarRow,
    step=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**63 - 1),
    time=st.integers(0, 2**63 - 1),
    values=st.dictionaries(names, numbers, min_size=1, max_size=5),
)


def same(left: float, right: float) -> bool:
    return type(left) is type(right) and (
        (math.isnan(left) and math.isnan(right))
        or (left == right and math.copysign(1, left) == math.copysign(1, right))
    )


def scalars(step: int) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=step, values={"loss": step / 3})


def read(folder: Path) -> list[ScalarRow]:
    return [row.record for row in JournalReader(folder).read() if isinstance(row.record, ScalarRow)]


@given(rows)
def test_decoding_an_encoded_row_returns_the_same_row(row: ScalarRow) -> None:
    decoded = decode(encode([row]).rstrip(b"\n"))
    assert isinstance(decoded, ScalarRow)
    assert (decoded.step, decoded.epoch, decoded.time) == (row.step, row.epoch, row.time)
    assert list(decoded.values) == list(row.values)
    assert all(same(decoded.values[name], row.values[name]) for name in row.values)


@given(st.lists(rows, min_size=1, max_size=5))
def test_every_line_is_standard_json(batch: list[ScalarRow]) -> None:
    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = encode(batch).splitlines()
    assert len(lines) == len(batch)
    for line, row in zip(lines, batch, strict=True):
        parsed = json.loads(line, parse_constant=reject)
        assert parsed["kind"] == "scalars"
        assert list(parsed["values"]) == list(row.values)


def test_nan_and_infinities_are_encoded_as_strings() -> None:
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "null": 1.0}
    line = encode([ScalarRow(step=0, epoch=0, time=0, values=values)])
    assert json.loads(line)["values"] == {
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
        "null": 1.0,
    }


def test_a_segment_starts_with_a_header_and_ends_with_an_end_record(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, run="r1", rank=3)
    writer.append([scalars(0)])
    writer.close("failed")
    first, _, last = [row.record for row in JournalReader(tmp_path).read()]
    assert isinstance(first, Header)
    assert (first.run, first.rank, first.pid, first.format) == ("r1", 3, os.getpid(), 1)
    assert isinstance(last, End)
    assert last.status == "failed"


def test_two_writers_never_share_a_segment(tmp_path: Path) -> None:
    writers = [SegmentWriter(tmp_path, run="r") for _ in range(3)]
    assert [writer.segment for writer in writers] == ["0001", "0002", "0003"]
    for step, writer in enumerate(writers):
        writer.append([scalars(step)])
        writer.close()
    assert [row.step for row in read(tmp_path)] == [0, 1, 2]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_all_whole_lines_of_a_truncated_segment_are_read(data: st.DataObject) -> None:
    lines = [encode([scalars(step)]) for step in range(5)]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    folder = Path("cut")
    folder.mkdir(exist_ok=True)
    (folder / "0001.jsonl").write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    reader = JournalReader(folder)
    assert len(list(reader.read())) == complete
    assert reader.damaged == 0
    assert reader.unread_bytes() == cut - sum(map(len, lines[:complete]))


def test_a_reader_continues_when_a_torn_line_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "0001.jsonl"
    line = encode([scalars(1)])
    path.write_bytes(encode([scalars(0)]) + line[:10])
    reader = JournalReader(tmp_path)
    assert [row.line for row in reader.read()] == [0]
    with path.open("ab") as file:
        file.write(line[10:])
    assert [(row.line, row.record) for row in reader.read()] == [(1, scalars(1))]


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"{}",
        b'{"kind":"unheard-of"}',
        b"\xff\xfe",
        b"",
        b'{"kind":"scalars","step":1}',
        b'{"kind":"scalars","step":1,"epoch":0,"time":0,"values":{"a":"text"}}',
    ],
)
def test_a_damaged_line_is_counted_and_skipped(tmp_path: Path, garbage: bytes) -> None:
    whole = [encode([scalars(step)]) for step in range(2)]
    (tmp_path / "0001.jsonl").write_bytes(whole[0] + garbage + b"\n" + whole[1])
    reader = JournalReader(tmp_path)
    lines = [(row.line, row.record) for row in reader.read()]
    assert lines == [(0, scalars(0)), (1, None), (2, scalars(1))]
    assert reader.damaged == 1


def test_reading_resumes_at_a_saved_position(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, run="r")
    writer.append([scalars(step) for step in range(10)])
    reader = JournalReader(tmp_path)
    first = list(reader.read(limit=4))
    assert [row.line for row in first] == [0, 1, 2, 3]
    resumed = JournalReader(tmp_path, reader.positions)
    assert [row.line for row in resumed.read()] == [4, 5, 6, 7, 8, 9, 10]
    assert resumed.positions == {"0001": Position(11, writer.length)}
    writer.close()


def test_a_line_longer_than_the_read_buffer_is_read_whole(tmp_path: Path) -> None:
    row = ScalarRow(
        step=0, epoch=0, time=0, values={f"name/{i:06}": float(i) for i in range(100_000)}
    )
    writer = SegmentWriter(tmp_path, run="r")
    writer.append([scalars(7), row, scalars(8)])
    writer.close()
    assert read(tmp_path) == [scalars(7), row, scalars(8)]


def test_a_newer_format_raises_with_the_command_to_upgrade(tmp_path: Path) -> None:
    header = Header(format=99, run="r", segment="0001", host="h", pid=1, rank=0, time=0)
    (tmp_path / "0001.jsonl").write_bytes(encode([header]))
    with pytest.raises(JournalError, match=r"format 99.*pip install --upgrade metricbus"):
        list(JournalReader(tmp_path).read())


def test_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"nowhere is missing"):
        list(JournalReader(tmp_path / "nowhere").read())


def _write_until_full(folder: Path, outcomes: multiprocessing.Queue[object]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    writer = SegmentWriter(folder, run="r")
    written = 0
    try:
        while True:
            writer.append([scalars(written), scalars(written + 1)])
            written += 2
    except OSError as error:
        outcomes.put((written, error.errno, writer.length))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.append([scalars(written), scalars(written + 1)])
    writer.close()


def test_a_write_that_fails_halfway_is_truncated(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    outcomes: multiprocessing.Queue[object] = context.Queue()
    process = context.Process(target=_write_until_full, args=(tmp_path, outcomes))
    process.start()
    outcome = outcomes.get(timeout=HANG_SECS)
    process.join()
    assert isinstance(outcome, tuple)
    written, errno, length = outcome
    assert os.strerror(errno) == "File too large"
    assert length <= 1000
    reader = JournalReader(tmp_path)
    steps = [row.record.step for row in reader.read() if isinstance(row.record, ScalarRow)]
    assert steps == list(range(written + 2))
    assert reader.damaged == 0


def test_a_value_takes_at_most_40_bytes_with_20_values_per_step(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, run="r")
    before = writer.length
    batch = [
        ScalarRow(
            step=step,
            epoch=step // 100,
            time=1_795_255_772_261_764_245 + step,
            values={f"train/m{i}": math.sin(step * 20 + i) for i in range(20)},
        )
        for step in range(1000)
    ]
    writer.append(batch)
    assert (writer.length - before) / 20_000 <= 40
    writer.close()

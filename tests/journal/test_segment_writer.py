"""The writer of a segment: its header, its number, its counts, and when data is forced to disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from metricbus._common.records import End, Header, ScalarRow, decode
from metricbus._journal.segment_summary import SummaryWriter, summary_path
from metricbus._journal.segment_writer import SegmentWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "journal"
    folder.mkdir()
    return folder


def row(step: int) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=step, values={"x": 1.0})


def lines_of(folder: Path, segment: str = "0001") -> list[bytes]:
    return (folder / f"{segment}.jsonl").read_bytes().splitlines()


def header_of(folder: Path, segment: str = "0001") -> Header:
    record = decode(lines_of(folder, segment)[0])
    assert isinstance(record, Header)
    return record


def test_header_has_the_rank_and_the_attempt_of_the_writer(folder: Path) -> None:
    SegmentWriter(folder, "r").close()
    SegmentWriter(folder, "r", rank=2, attempt=3).close()
    found = [header_of(folder, segment) for segment in ("0001", "0002")]
    assert [(header.rank, header.attempt) for header in found] == [(0, 1), (2, 3)]
    assert {(header.run, header.pid) for header in found} == {("r", os.getpid())}


def test_lines_and_length_are_those_of_the_file(folder: Path) -> None:
    writer = SegmentWriter(folder, "r")
    for records in ([], [row(0)], [row(1), row(2)]):
        writer.append(records)
        assert writer.lines == len(lines_of(folder))
        assert writer.length == (folder / "0001.jsonl").stat().st_size
    writer.close()
    assert isinstance(decode(lines_of(folder)[-1]), End)


def test_segment_gets_the_number_after_the_highest(folder: Path) -> None:
    for name in ("0007.jsonl", "0003.jsonl", "notes.jsonl", "0009.txt"):
        (folder / name).touch()
    writer = SegmentWriter(folder, "r")
    writer.close()
    assert writer.segment == header_of(folder, "0008").segment == "0008"


def test_numbers_that_other_writers_take_meanwhile_are_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0001.jsonl", "0002.jsonl"):
        (folder / name).write_bytes(b"theirs\n")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))  # they were not there yet
    writer = SegmentWriter(folder, "r")
    writer.close()
    assert writer.segment == "0003"
    assert lines_of(folder, "0001") == lines_of(folder, "0002") == [b"theirs"]


@pytest.mark.parametrize(
    ("fsync", "expected"), [("never", [0, 0, 0]), ("flush", [0, 1, 2]), ("always", [3, 3, 4])]
)
def test_data_is_forced_to_disk_when_fsync_says_so(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    fsync: Literal["never", "flush", "always"],
    expected: list[int],
) -> None:
    def sync(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):  # and not the folder
            synced.append(fd)

    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", sync)
    counts = []
    writer = SegmentWriter(folder, "r", fsync=fsync)
    for step in range(2):
        writer.append([row(step)])
    counts.append(len(synced))
    writer.sync()
    counts.append(len(synced))
    writer.close()
    counts.append(len(synced))
    assert counts == expected


def test_disk_that_cannot_be_forced_causes_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int) -> NoReturn:
        raise OSError("seeded")

    monkeypatch.setattr(os, "fsync", fail)
    writer = SegmentWriter(folder, "r", fsync="always")
    for step in range(3):
        writer.append([row(step)])
    writer.close()
    assert len(lines_of(folder)) == 5
    assert caplog.text.count("may not survive a power cut: seeded") == 1


def test_long_segment_is_summarized(folder: Path) -> None:
    writer = SegmentWriter(folder, "r")
    for step in range(0, 10_000, 100):
        writer.append([row(step + i) for i in range(100)])
    writer.close()
    path = summary_path(folder, "0001")
    assert path.stat().st_size > 0
    open_files = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()}
    assert str(path) not in open_files


def test_failure_of_the_summary_does_not_affect_the_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("seeded")

    caplog.set_level("INFO", "metricbus.journal")
    monkeypatch.setattr(SummaryWriter, "add", fail)
    writer = SegmentWriter(folder, "r")
    writer.append([row(0)])
    writer.close()
    assert len(lines_of(folder)) == 3
    assert caplog.text.count("is no longer summarized") == 1
    assert "RuntimeError: seeded" in caplog.text

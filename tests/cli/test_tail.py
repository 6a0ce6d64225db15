"""The command `metricbus tail`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from metricbus import Histogram, MetricBus, ScalarRow, Table, Text
from metricbus._common.records import Rewind
from metricbus._history.last_rows import last_rows
from metricbus._history.name_filter import NameFilter
from metricbus._journal import tail as journal_tail
from metricbus._journal.run import RunFolder, create_run
from metricbus._journal.segment_reader import JournalReader
from metricbus._journal.segment_writer import SegmentWriter
from metricbus._journal.tail import lines_backwards
from tests.helpers.cli_runs import invoke
from tests.helpers.limits import HANG_SECS

WaitFor = Callable[[Callable[[], bool]], None]


def tail(*arguments: object) -> Result:
    return invoke("tail", *arguments)


@contextmanager
def following(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run `metricbus tail --follow`; yield the process and the file with its output."""
    out = folder / "out.txt"
    command = [sys.executable, "-m", "metricbus", "tail", "r", "--follow", *arguments]
    with open(out, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"METRICBUS_DIR": str(folder)},
        )
    try:
        yield process, out
    finally:
        process.kill()
        process.communicate()


def row(step: int, time: int | None = None, **values: float) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=step * 10**9 if time is None else time, values=values)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run without rows, whose process has died."""
    folder, run = create_run(tmp_path, id="r", name="r", config={}, sinks=[])
    folder.save(msgspec.structs.replace(run, pid=2**22 + 1, process_started=1))
    return folder


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for step in range(25):
            bus.log({"train/loss": step / 2, "n": step}, step=2 * step)
            bus.log("val/loss", float("nan"), step=2 * step + 1)
    return tmp_path / "r"


def steps(text: str) -> list[int]:
    return [int(line.split("step ")[1].split()[0]) for line in text.splitlines()]


def test_prints_the_last_rows_in_order(finished: Path) -> None:
    done = tail(finished, "--name", "train/*")
    assert done.exit_code == 0, done.output
    assert steps(done.stdout) == list(range(30, 50, 2))
    assert done.stdout.splitlines()[-1].endswith("step 48 epoch 0 | train/loss=12")


def test_prints_only_the_selected_names(finished: Path) -> None:
    done = tail(finished, "--name", "n", "--name", "val/*", "-n", 2)
    assert [line.split("| ")[1] for line in done.stdout.splitlines()] == ["n=24", "val/loss=nan"]


def test_json_lines_equal_the_journal_records(finished: Path) -> None:
    done = tail(finished, "--json", "-n", 2)
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["kind"], first["values"]) == ("scalars", {"train/loss": 12.0, "n": 24})
    assert second["values"] == {"val/loss": "NaN"}


def test_prints_one_line_for_each_medium(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("weights", Histogram([1.0, 2.0, 3.0]), step=1)
        bus.log("notes", Text("two\nlines"), step=2)
        bus.log("table", Table(columns=["a"], rows=[[1], [2]]), step=3)
    done = tail(tmp_path / "r")
    assert [line.split("| ")[1].split(" ")[:2] for line in done.stdout.splitlines()] == [
        ["weights:", "histogram"],
        ["notes:", "text"],
        ["table:", "table"],
    ]


def test_prints_a_medium_whose_file_is_missing(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("table", Table(columns=["a"], rows=[[1]]))
    for file in (tmp_path / "r" / "media").rglob("*.jsonl"):
        file.unlink()
    done = tail(tmp_path / "r")
    assert done.exit_code == 0
    assert "table: table, " in done.stdout
    assert "is missing" in done.stdout


def test_merges_rows_of_several_segments_by_time(run: RunFolder) -> None:
    first, second = SegmentWriter(run.journal, "r"), SegmentWriter(run.journal, "r")
    first.append([row(0), row(2), row(4)])
    second.append([row(1), row(3), row(5)])
    for rows, expected in ((10, [0, 1, 2, 3, 4, 5]), (3, [3, 4, 5]), (0, [])):
        selected, _ = last_rows(run.journal, rows, NameFilter())
        assert [record.step for record in selected] == expected


def test_prints_a_rewind(run: RunFolder) -> None:
    writer = SegmentWriter(run.journal, "r")
    writer.append([row(5, x=1.0), Rewind(step=2, epoch=0, time=6 * 10**9), row(3, x=2.0)])
    assert "rewind to step 2 epoch 0" in tail(run.path, "--name", "x").stdout


def test_skips_torn_and_damaged_lines(run: RunFolder) -> None:
    writer = SegmentWriter(run.journal, "r")
    writer.append([row(1, x=1.0)])
    with open(run.journal / "0001.jsonl", "ab") as file:
        file.write(b'no line\n{"kind":"scalars","step":2,')
    assert steps(tail(run.path).stdout) == [1]


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), min_size=1))
def test_lines_backwards_yields_all_lines(lines: list[bytes]) -> None:
    content = b"".join(line + b"\n" for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_tail, "_BLOCK", 7)
        reversed_lines = list(lines_backwards(io.BytesIO(content), len(content)))
    assert reversed_lines == lines[::-1]


def test_reads_only_the_end_of_a_long_segment() -> None:
    content = b"x" * 99 + b"\n"
    file = io.BytesIO(content * 100_000)
    assert next(lines_backwards(file, len(content) * 100_000)) == b"x" * 99
    assert file.tell() >= len(content) * 99_000


def test_does_not_read_lines_twice(run: RunFolder) -> None:
    writer = SegmentWriter(run.journal, "r")
    writer.append([row(1, x=1.0), row(2, x=2.0)])
    _, positions = last_rows(run.journal, 1, NameFilter())
    with open(run.journal / "0001.jsonl", "r+b") as file:
        file.write(b"#" * 50)  # is counted as damaged if it is read again
    writer.append([row(3, x=3.0)])
    SegmentWriter(run.journal, "r").append([row(4, x=4.0)])
    reader = JournalReader(run.journal, positions)
    records = [row.record for row in reader.read()]
    assert [record.step for record in records if isinstance(record, ScalarRow)] == [3, 4]
    assert reader.damaged == 0


def test_follow_prints_new_rows_until_the_run_ends(tmp_path: Path, wait_for: WaitFor) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0, step=1)
        bus.flush()
        with following(tmp_path) as (process, out):
            wait_for(lambda: steps(out.read_text()) == [1])
            bus.log("x", 2.0, step=2)
            bus.flush()
            wait_for(lambda: steps(out.read_text()) == [1, 2])
            second_segment = SegmentWriter(tmp_path / "r" / "journal", "r")
            second_segment.append([row(3, x=3.0)])
            wait_for(lambda: steps(out.read_text()) == [1, 2, 3])
            second_segment.close()
            bus.log("x", 4.0, step=4)
            bus.close()
            _, errors = process.communicate(timeout=HANG_SECS)
            assert (process.returncode, errors) == (0, "")
            assert steps(out.read_text()) == [1, 2, 3, 4]


def test_follow_ends_for_a_run_whose_process_has_died(run: RunFolder) -> None:
    journal = run.journal / "0001.jsonl"
    SegmentWriter(run.journal, "r").append([row(1, x=1.0)])
    dead = journal.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{2**22 + 1}')
    journal.write_text(dead)
    before = (run.path / "run.json").read_bytes()
    done = tail(run.path, "--follow")
    assert (done.exit_code, steps(done.stdout)) == (0, [1])
    assert (run.path / "run.json").read_bytes() == before, "tail must not change the run"


def test_follow_ends_for_a_finished_run_from_another_program(tmp_path: Path) -> None:
    journal = tmp_path / "f" / "journal"
    journal.mkdir(parents=True)
    (tmp_path / "f" / "run.json").write_text('{"id":"f","name":"f","status":"finished"}')
    header = {"kind": "segment", "format": 1, "run": "f", "segment": "0001", "host": "elsewhere"}
    values = {"kind": "scalars", "step": 1, "epoch": 0, "time": 0, "values": {"x": 1}}
    (journal / "0001.jsonl").write_text(
        f"{json.dumps(header | {'pid': 1, 'rank': 0, 'time': 1})}\n{json.dumps(values)}\n"
    )
    done = tail(tmp_path / "f", "--follow")
    assert (done.exit_code, steps(done.stdout)) == (0, [1])


def test_follow_exits_quietly_on_ctrl_c(tmp_path: Path, wait_for: WaitFor) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0, step=1)
        bus.flush()
        with following(tmp_path) as (process, out):
            wait_for(lambda: steps(out.read_text()) == [1])
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=HANG_SECS)
            assert (process.returncode, errors) == (130, "")


def test_exits_quietly_when_the_pipe_is_closed(finished: Path) -> None:
    command = f"{sys.executable} -m metricbus tail {finished} -n 1000 --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_an_unknown_name_suggests_similar_ones(finished: Path) -> None:
    done = tail(finished, "--name", "train/los")
    assert done.exit_code == 2
    assert "No series matches 'train/los'. Did you mean 'train/loss'" in done.stderr


def test_reports_a_run_without_rows(run: RunFolder) -> None:
    done = tail(run.path)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "has no rows yet" in done.stderr


def test_rejects_a_path_that_is_not_a_run(tmp_path: Path) -> None:
    assert tail(tmp_path / "none").exit_code == 2
    done = tail(tmp_path)
    assert done.exit_code == 2
    assert "is not a run" in done.stderr


def test_reports_a_missing_journal(run: RunFolder) -> None:
    run.journal.rmdir()
    done = tail(run.path)
    assert done.exit_code == 2
    assert "is missing" in done.stderr


def test_prints_local_times(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        SegmentWriter(run.journal, "r").append([row(1, time=3_661 * 10**9, x=1.0)])
        assert tail(run.path).stdout == "01:01:01 step 1 epoch 0 | x=1\n"
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_help_has_an_example() -> None:
    assert "Example: metricbus tail" in tail("--help").stdout

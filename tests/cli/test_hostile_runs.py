"""Every command handles damaged and hostile input with an error message, not a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import metricbus
from tests.helpers.cli_runs import (
    READERS,
    SINGLE_RUN_READERS,
    assert_handled,
    change_run_json,
    run_command,
)
from tests.helpers.limits import HANG_SECS

Lines = list[bytes]
JOURNALS: dict[str, Callable[[Lines], Lines]] = {
    "empty": lambda lines: [],
    "torn header": lambda lines: [lines[0][:20]],
    "header only": lambda lines: [*lines[:1], b""],
    "torn row": lambda lines: [*lines[:3], lines[3][:-9]],
    "torn character": lambda lines: [*lines[:3], b'{"kind":"text","name":"\xc3'],
    "no header": lambda lines: lines[1:],
    "broken line in the middle": lambda lines: [*lines[:3], b'{"kind":"scalars",', *lines[3:]],
    "binary data": lambda lines: [bytes(range(256)) * 20],
    "binary data in the middle": lambda lines: [*lines[:3], bytes(range(255, 10, -1)), *lines[3:]],
    "zeros": lambda lines: [bytes(5000)],
    "empty lines": lambda lines: [b""] * 100,
    "other JSON": lambda lines: [*lines[:3], b"[]", b"null", b"1", b'{"kind":5}', *lines[3:]],
    "unknown kinds": lambda lines: [*lines[:3], b'{"kind":"hologram","a":1}', *lines[3:]],
    "negative step, epoch and time": lambda lines: [
        *lines[:3],
        b'{"kind":"scalars","step":-5,"epoch":-1,"time":-1,"values":{"n":1}}',
        *lines[3:],
    ],
    "numbers beyond 64 bits": lambda lines: [
        *lines[:3],
        b'{"kind":"scalars","step":1,"epoch":0,"time":1,"values":{"n":%d}}' % 10**40,
        *lines[3:],
    ],
    "steps beyond 64 bits": lambda lines: [
        *lines[:3],
        b'{"kind":"scalars","step":%d,"epoch":0,"time":1,"values":{"n":1}}' % 10**20,
        *lines[3:],
    ],
    "smallest and largest times": lambda lines: [
        *lines[:3],
        b'{"kind":"scalars","step":1,"epoch":0,"time":%d,"values":{"n":1}}' % (2**63 - 1),
        b'{"kind":"scalars","step":1,"epoch":0,"time":%d,"values":{"n":1}}' % -(2**63),
        *lines[3:],
    ],
    "row without values": lambda lines: [
        *lines[:1],
        b'{"kind":"scalars","step":1,"epoch":0,"time":1,"values":{}}',
        b"",
    ],
    "Windows line endings": lambda lines: [line + b"\r" for line in lines[:-1]] + [b""],
    "byte order mark": lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]],
}


@pytest.mark.parametrize("command", [name for name in READERS if "json" not in name])
@pytest.mark.parametrize("journal", JOURNALS)
def test_reads_a_damaged_journal_as_far_as_possible(
    command: str, journal: str, run_copy: Path
) -> None:
    segment = run_copy / "journal" / "0001.jsonl"
    segment.write_bytes(b"\n".join(JOURNALS[journal](segment.read_bytes().split(b"\n"))))
    if command == "deliver" and journal == "steps beyond 64 bits":
        return  # depends on the sink
    assert_handled(run_command(command, run_copy), 0, 1, 2)


@pytest.mark.parametrize("command", ["plot --term", "export parquet"])
def test_reports_a_step_beyond_64_bits(command: str, run_copy: Path) -> None:
    segment = run_copy / "journal" / "0001.jsonl"
    lines = segment.read_bytes().split(b"\n")
    segment.write_bytes(b"\n".join(JOURNALS["steps beyond 64 bits"](lines)))
    done = run_command(command, run_copy)
    assert_handled(done, 2)
    assert "does not fit into 64 bits" in done.stderr


@pytest.mark.parametrize("command", SINGLE_RUN_READERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no run.json"),
        ("", "cannot be read"),
        ('{"id": "x", ', "cannot be read"),
        ("[]", "cannot be read"),
        ("\0\xff", "cannot be read"),
        ('{"id": "x", "name": "x", "format": 99}', "has format 99"),
    ],
    ids=["missing", "empty", "torn", "list", "binary", "newer"],
)
def test_reports_an_invalid_run_json(
    command: str, text: str | None, message: str, run_copy: Path
) -> None:
    (run_copy / "run.json").unlink() if text is None else (run_copy / "run.json").write_text(text)
    done = run_command(command, run_copy)
    assert_handled(done, 2)
    assert message in done.stderr


def test_lists_a_run_of_a_newer_format_as_unreadable(run_copy: Path) -> None:
    change_run_json(run_copy, format=99)
    (entry,) = json.loads(run_command("ls --json", run_copy).stdout)
    assert entry["status"] == "unreadable"
    assert "pip install --upgrade metricbus" in entry["problem"]


@pytest.mark.parametrize("command", SINGLE_RUN_READERS)
@pytest.mark.parametrize("problem", ["missing", "file", "folder as segment"])
def test_reports_an_invalid_journal(command: str, problem: str, run_copy: Path) -> None:
    journal = run_copy / "journal"
    if problem == "folder as segment":
        (journal / "0002.jsonl").mkdir()
    else:
        shutil.rmtree(journal)
        if problem == "file":
            journal.write_text("")
    assert_handled(run_command(command, run_copy), 2)


@pytest.mark.parametrize("command", SINGLE_RUN_READERS)
def test_a_missing_run_suggests_similar_names(command: str, run_copy: Path) -> None:
    (run_copy.parent / "digits-cnn").mkdir()
    done = run_command(command, run_copy.parent / "digits-cmm")
    assert_handled(done, 2)
    assert "Did you mean digits-cnn?" in done.stderr


@pytest.mark.parametrize("command", ["show", "tail", "plot --term", "export csv", "compare"])
def test_a_missing_series_suggests_similar_names(command: str, run_copy: Path) -> None:
    done = run_command(command, run_copy, "--name", "train/los")
    assert_handled(done, 2)
    assert "Did you mean" in done.stderr
    assert "train/loss" in done.stderr


@pytest.mark.parametrize("option", [["--nmae", "x"], ["--name"], ["a", "b", "c", "--bad"]])
@pytest.mark.parametrize("command", SINGLE_RUN_READERS)
def test_rejects_wrong_options(command: str, option: list[str], shared_run: Path) -> None:
    assert_handled(run_command(command, shared_run, *option), 2)


@pytest.mark.parametrize("command", ["export csv", "export json", "plot --out"])
@pytest.mark.parametrize("out", ["a-folder", "none/x", "/dev/full"])
def test_reports_an_output_file_that_cannot_be_written(
    command: str, out: str, shared_run: Path
) -> None:
    if command == "plot --out":
        out = {"/dev/full": "/dev/full/x"}.get(out, out) + ".png"
    if "folder" in out:
        Path(out).mkdir()
    done = run_command(command, shared_run, "--out", out)
    assert_handled(done, 2)
    assert "--out" in done.stderr or out in done.stderr


def test_writes_directly_into_a_device_or_pipe(shared_run: Path) -> None:
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        assert_handled(run_command("export csv", shared_run, "--out", "pipe"), 0)
        output, _ = reader.communicate(timeout=HANG_SECS)
    assert output.startswith(b"step,epoch,time,name,value\r\n0,0,")
    assert Path("pipe").is_fifo()


def test_reads_and_delivers_a_run_from_another_program(tmp_path: Path) -> None:
    """Such a run may consist of a run.json and a journal, as described in docs/journal.md."""
    run_copy = tmp_path / "theirs"
    (run_copy / "journal").mkdir(parents=True)
    (run_copy / "run.json").write_text('{"id": "theirs", "name": "theirs", "status": "finished"}')
    rows = [
        '{"kind":"segment","format":1,"run":"theirs","segment":"0001","host":"h","pid":1,'
        '"rank":0,"time":1769869530123456789}',
        '{"kind":"scalars","step":0,"epoch":0,"time":1769869531123456789,"values":{"loss":2.5}}',
        '{"kind":"scalars","step":1,"epoch":0,"time":1769869532123456789,"values":{"loss":"NaN"}}',
    ]
    (run_copy / "journal" / "0001.jsonl").write_text("\n".join(rows) + "\n")
    for command in READERS:
        assert_handled(run_command(command, run_copy), 0)
    assert metricbus.read(run_copy).names() == ["loss"]
    assert len(list(Path("out").rglob("metrics.csv"))) == 1

"""Every command with input that is bad, hostile or very large: clear words, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import metricbus
from tests.helpers.cli_runs import OF_ONE_RUN, READERS, assert_told, change, make_run, run_command

Lines = list[bytes]
JOURNALS: dict[str, Callable[[Lines], Lines]] = {
    "no byte": lambda lines: [],
    "a torn header": lambda lines: [lines[0][:20]],
    "a header alone": lambda lines: [*lines[:1], b""],
    "a torn row": lambda lines: [*lines[:3], lines[3][:-9]],
    "a torn character": lambda lines: [*lines[:3], b'{"kind":"text","name":"\xc3'],
    "no header": lambda lines: lines[1:],
    "a broken line in the middle": lambda lines: [*lines[:3], b'{"kind":"scalars",', *lines[3:]],
    "binary rubbish": lambda lines: [bytes(range(256)) * 20],
    "rubbish in the middle": lambda lines: [*lines[:3], bytes(range(255, 10, -1)), *lines[3:]],
    "zeros": lambda lines: [bytes(5000)],
    "empty lines": lambda lines: [b""] * 100,
    "other JSON": lambda lines: [*lines[:3], b"[]", b"null", b"1", b'{"kind":5}', *lines[3:]],
    "unknown kinds": lambda lines: [*lines[:3], b'{"kind":"hologram","a":1}', *lines[3:]],
    "negative places": lambda lines: [
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
    "times at both ends": lambda lines: [
        *lines[:3],
        b'{"kind":"scalars","step":1,"epoch":0,"time":%d,"values":{"n":1}}' % (2**63 - 1),
        b'{"kind":"scalars","step":1,"epoch":0,"time":%d,"values":{"n":1}}' % -(2**63),
        *lines[3:],
    ],
    "a row without values": lambda lines: [
        *lines[:1],
        b'{"kind":"scalars","step":1,"epoch":0,"time":1,"values":{}}',
        b"",
    ],
    "line ends of Windows": lambda lines: [line + b"\r" for line in lines[:-1]] + [b""],
    "a byte order mark": lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run of one's own, to be damaged."""
    return shutil.copytree(made, tmp_path / "runs" / "r")


@pytest.mark.parametrize("command", [name for name in READERS if "json" not in name])
@pytest.mark.parametrize("journal", JOURNALS)
def test_a_damaged_journal_is_read_as_far_as_it_goes(command: str, journal: str, run: Path) -> None:
    segment = run / "journal" / "0001.jsonl"
    segment.write_bytes(b"\n".join(JOURNALS[journal](segment.read_bytes().split(b"\n"))))
    if command == "deliver" and journal == "steps beyond 64 bits":
        return  # what a sink makes of such a step is the sink's
    assert_told(run_command(command, run), 0, 1, 2)


@pytest.mark.parametrize("command", ["show", "compare", "plot --term", "export parquet"])
def test_a_step_beyond_64_bits_is_told(command: str, run: Path) -> None:
    segment = run / "journal" / "0001.jsonl"
    lines = segment.read_bytes().split(b"\n")
    segment.write_bytes(b"\n".join(JOURNALS["steps beyond 64 bits"](lines)))
    done = run_command(command, run)
    assert_told(done, 2)
    assert "beyond 64 bits" in done.stderr


@pytest.mark.parametrize("command", OF_ONE_RUN)
@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "no run.json"),
        ("", "cannot be read"),
        ('{"id": "x", ', "cannot be read"),
        ("[]", "cannot be read"),
        ("\0\xff", "cannot be read"),
        ('{"id": "x", "name": "x", "format": 99}', "has format 99"),
    ],
    ids=["missing", "empty", "torn", "a list", "rubbish", "newer"],
)
def test_a_run_json_that_is_none_is_told(
    command: str, text: str | None, word: str, run: Path
) -> None:
    (run / "run.json").unlink() if text is None else (run / "run.json").write_text(text)
    done = run_command(command, run)
    assert_told(done, 2)
    assert word in done.stderr


def test_a_run_of_a_newer_format_is_listed_as_unreadable(run: Path) -> None:
    change(run, format=99)
    (entry,) = json.loads(run_command("ls --json", run).stdout)
    assert entry["status"] == "unreadable"
    assert "pip install --upgrade metricbus" in entry["problem"]


@pytest.mark.parametrize("command", OF_ONE_RUN)
@pytest.mark.parametrize("what", ["missing", "a file", "with a folder for a segment"])
def test_a_journal_that_is_none_is_told(command: str, what: str, run: Path) -> None:
    journal = run / "journal"
    if what.startswith("with"):
        (journal / "0002.jsonl").mkdir()
    else:
        shutil.rmtree(journal)
        if what == "a file":
            journal.write_text("")
    assert_told(run_command(command, run), 2)


@pytest.mark.parametrize("command", OF_ONE_RUN)
def test_of_a_run_that_is_not_there_near_names_are_told(command: str, run: Path) -> None:
    (run.parent / "digits-cnn").mkdir()
    done = run_command(command, run.parent / "digits-cmm")
    assert_told(done, 2)
    assert "did you mean digits-cnn?" in done.stderr


@pytest.mark.parametrize("command", ["show", "tail", "plot --term", "export csv", "compare"])
def test_of_a_name_that_is_not_there_near_names_are_told(command: str, run: Path) -> None:
    done = run_command(command, run, "--name", "train/los")
    assert_told(done, 2)
    assert "did you mean" in done.stderr
    assert "train/loss" in done.stderr


@pytest.mark.parametrize("option", [["--nmae", "x"], ["--name"], ["a", "b", "c", "--bad"]])
@pytest.mark.parametrize("command", OF_ONE_RUN)
def test_wrong_options_are_misuse(command: str, option: list[str], made: Path) -> None:
    assert_told(run_command(command, made, *option), 2)


@pytest.mark.parametrize("command", ["export csv", "export json", "plot --out"])
@pytest.mark.parametrize("out", ["a-folder", "none/x", "/dev/full"])
def test_an_out_that_cannot_be_written_is_told(command: str, out: str, made: Path) -> None:
    if command == "plot --out":
        out = {"/dev/full": "/dev/full/x"}.get(out, out) + ".png"
    if "folder" in out:
        Path(out).mkdir()
    done = run_command(command, made, "--out", out)
    assert_told(done, 2)
    assert "--out" in done.stderr or out in done.stderr


def test_an_out_that_is_no_file_is_written_into(made: Path) -> None:
    """A device, or a pipe of the shell, is not replaced by a file."""
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        assert_told(run_command("export csv", made, "--out", "pipe"), 0)
        found, _ = reader.communicate(timeout=30)
    assert found.startswith(b"step,epoch,time,name,value\r\n0,0,")
    assert Path("pipe").is_fifo()


def test_a_run_that_somebody_else_wrote_is_read_and_delivered(tmp_path: Path) -> None:
    """With nothing beside run.json and a journal, as docs/journal.md has them."""
    run = tmp_path / "theirs"
    (run / "journal").mkdir(parents=True)
    (run / "run.json").write_text('{"id": "theirs", "name": "theirs", "status": "finished"}')
    rows = [
        '{"kind":"segment","format":1,"run":"theirs","segment":"0001","host":"h","pid":1,'
        '"rank":0,"time":1769869530123456789}',
        '{"kind":"scalars","step":0,"epoch":0,"time":1769869531123456789,"values":{"loss":2.5}}',
        '{"kind":"scalars","step":1,"epoch":0,"time":1769869532123456789,"values":{"loss":"NaN"}}',
    ]
    (run / "journal" / "0001.jsonl").write_text("\n".join(rows) + "\n")
    for command in READERS:
        assert_told(run_command(command, run), 0)
    assert metricbus.read(run).names() == ["loss"]
    assert len(list(Path("out").rglob("metrics.csv"))) == 1

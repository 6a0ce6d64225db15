"""Every command on terminals, in pipes, interrupted, without rights, and with hostile names."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from metricbus import MetricBus
from tests.helpers.cli_runs import arguments_of, assert_told, change, make_run, run_command

NASTY = {
    "markup": "[red]n[/red] [/] [link=x]",
    "a newline": "a\nb",
    "an escape sequence": "\x1b[31mred\x1b]0;title\x07",
    "a control of ISO 8859": "\x9b31m",
    "another direction": "\u202etxt",
    "wide characters": "日本語/损失" * 9,
    "an unassigned character": "\U000e0fff",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run of one's own, to be damaged."""
    return shutil.copytree(made, tmp_path / "runs" / "r")


@pytest.mark.parametrize(
    "command", ["ls", "show", "tail", "plot --out", "compare", "export csv", "deliver"]
)
def test_a_folder_without_permission_is_told(command: str, run: Path) -> None:
    (run / "journal" / "0001.jsonl").chmod(0)
    arguments = arguments_of(command, run)
    done = subprocess.run(
        [*_without_rights(), sys.executable, "-m", "metricbus", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if command == "ls" else 2)
    assert "ermission denied" in (done.stdout if command == "ls" else done.stderr)


def _without_rights() -> list[str]:
    """What has a command obey the modes of files, for root too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]


@pytest.mark.parametrize(
    "command", ["ls", "show", "tail", "plot --term", "compare", "show --json", "deliver"]
)
@pytest.mark.parametrize("kind", NASTY)
def test_names_and_config_cannot_steer_the_terminal(
    command: str, kind: str, tmp_path: Path
) -> None:
    text = NASTY[kind]
    with MetricBus(id="r", run=text, sinks=[], dir=tmp_path, config={text: text}) as bus:
        bus.log(text, 1.0)
    change(tmp_path / "r", tags=[text], notes=text, group=text, project=text)
    done = run_command(command, tmp_path / "r")
    assert_told(done, 0)
    assert done.output.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", NASTY)
def test_an_unknown_name_in_a_message_cannot_steer_the_terminal(kind: str, tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log(NASTY[kind], 1.0)
    for command in ("show", "tail", "plot --term", "export csv", "compare"):
        done = run_command(command, tmp_path / "r", "--name", "nothing")
        assert_told(done, 2)
        assert done.stderr.replace("\n", "").isprintable()


def test_json_has_the_names_as_they_are(tmp_path: Path) -> None:
    names = list(NASTY.values())
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log(dict.fromkeys(names, 1.0))
    shown = json.loads(run_command("show --json", tmp_path / "r").stdout)
    assert [series["name"] for series in shown["series"]] == names
    row = json.loads(run_command("tail --json", tmp_path / "r").stdout)
    assert list(row["values"]) == names


def test_a_folder_whose_name_is_no_utf_8_is_shown(run: Path) -> None:
    other = Path(os.fsdecode(os.fsencode(run.parent) + b"/bad-\xff"))
    run.rename(other)
    for command in ("ls", "ls --json", "show", "show --json", "compare --json"):
        done = run_command(command, other)
        assert_told(done, 0)


@pytest.mark.parametrize("command", ["ls", "show", "compare", "plot --term"])
def test_what_is_shown_fits_into_40_columns(
    command: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    change(run, config={"optimizer": {"a long name of a key": "x" * 100}}, name="日本語" * 20)
    done = run_command(command, run)
    assert_told(done, 0)
    lines = [line for line in done.stdout.splitlines() if str(run) not in line]
    assert max(map(cell_len, lines)) <= 40


@pytest.mark.parametrize("command", ["show", "compare", "tail", "export csv-wide"])
def test_ten_thousand_names_are_no_obstacle(command: str, tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log({f"layer/{number:05d}/norm": float(number) for number in range(10_000)})
    done = run_command(command, tmp_path / "r")
    assert_told(done, 0)
    assert "layer/09999/norm" in done.stdout


@pytest.mark.parametrize("command", ["ls", "show", "tail", "plot --term", "compare", "export csv"])
def test_a_pipe_that_is_closed_ends_quietly(command: str, made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "r")
    segment = run / "journal" / "0001.jsonl"
    *lines, end, _ = segment.read_bytes().split(b"\n")
    segment.write_bytes(b"\n".join([*lines, *lines[1:] * 200, end, b""]))
    arguments = arguments_of(command, run)
    with subprocess.Popen(
        [sys.executable, "-m", "metricbus", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) in (0, 1)
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert "Broken pipe" not in said


def test_on_a_terminal_an_export_cannot_steer_it(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log("\x1b[31mred", 1.0)
    shown = on_a_terminal("export", str(tmp_path / "r"))
    assert "\\x1b[31mred" in shown
    assert "\x1b" not in shown


def test_no_colour_where_it_is_not_wanted(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in on_a_terminal("show", str(made))
    monkeypatch.setenv("NO_COLOR", "1")
    for command in (["show", str(made)], ["plot", str(made), "--term"], ["ls", str(made)]):
        assert "\x1b[3" not in on_a_terminal(*command)


def on_a_terminal(*arguments: str) -> str:
    """What a command prints on a terminal of its own."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "metricbus", *arguments], stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        found = b""
        try:
            while part := os.read(ours, 1 << 16):
                found += part
        except OSError:  # how the end of a terminal is told
            pass
        process.wait(30)
    os.close(ours)
    return found.decode()


@pytest.mark.parametrize("command", ["show", "export csv", "compare", "deliver"])
def test_ctrl_c_ends_with_130_and_no_words(
    command: str, made: Path, tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    run = shutil.copytree(made, tmp_path / "r")
    segment = run / "journal" / "0001.jsonl"
    lines = segment.read_bytes().split(b"\n")
    rows = b"\n".join(lines[1:-2]) + b"\n"
    with open(segment, "wb") as file:
        file.write(lines[0] + b"\n")
        file.writelines(rows for _ in range(20_000))
    arguments = arguments_of(command, run)
    with subprocess.Popen(
        [sys.executable, "-m", "metricbus", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        wait_for(lambda: _bytes_read(process.pid) > _WHEN_AT_WORK)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert (process.wait(30), said) == (130, "")


_WHEN_AT_WORK = 20 << 20  # bytes: what it imports is less


def _bytes_read(pid: int) -> int:
    words = Path(f"/proc/{pid}/io").read_text().split()
    return int(words[words.index("rchar:") + 1])

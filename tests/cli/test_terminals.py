"""Every command on terminals, in pipes, interrupted, without permission, and with hostile names."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from metricbus import MetricBus
from tests.helpers.cli_runs import assert_handled, change_run_json, command_arguments, run_command
from tests.helpers.limits import HANG_SECS

HOSTILE_NAMES = {
    "markup": "[red]n[/red] [/] [link=x]",
    "newline": "a\nb",
    "escape sequence": "\x1b[31mred\x1b]0;title\x07",
    "C1 control character": "\x9b31m",
    "bidirectional control": "\u202etxt",
    "wide characters": "日本語/损失" * 9,
    "unassigned character": "\U000e0fff",
}


@pytest.mark.parametrize(
    "command", ["ls", "show", "tail", "plot --out", "compare", "export csv", "deliver"]
)
def test_reports_a_folder_without_permission(command: str, run_copy: Path) -> None:
    (run_copy / "journal" / "0001.jsonl").chmod(0)
    arguments = command_arguments(command, run_copy)
    done = subprocess.run(
        [*_without_capabilities(), sys.executable, "-m", "metricbus", *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_SECS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if command == "ls" else 2)
    assert "ermission denied" in (done.stdout if command == "ls" else done.stderr)


def _without_capabilities() -> list[str]:
    """Return a command prefix that makes file permissions apply to root, too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root can read everything, and setpriv is not available")
    capabilities = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]


@pytest.mark.parametrize(
    "command", ["ls", "show", "tail", "plot --term", "compare", "show --json", "deliver"]
)
@pytest.mark.parametrize("kind", HOSTILE_NAMES)
def test_names_and_config_cannot_control_the_terminal(
    command: str, kind: str, tmp_path: Path
) -> None:
    text = HOSTILE_NAMES[kind]
    with MetricBus(id="r", run=text, sinks=[], dir=tmp_path, config={text: text}) as bus:
        bus.log(text, 1.0)
    change_run_json(tmp_path / "r", tags=[text], notes=text, group=text, project=text)
    done = run_command(command, tmp_path / "r")
    assert_handled(done, 0)
    assert done.output.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", HOSTILE_NAMES)
def test_names_in_error_messages_cannot_control_the_terminal(kind: str, tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log(HOSTILE_NAMES[kind], 1.0)
    for command in ("show", "tail", "plot --term", "export csv", "compare"):
        done = run_command(command, tmp_path / "r", "--name", "nothing")
        assert_handled(done, 2)
        assert done.stderr.replace("\n", "").isprintable()


def test_json_preserves_names(tmp_path: Path) -> None:
    names = list(HOSTILE_NAMES.values())
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log(dict.fromkeys(names, 1.0))
    result = json.loads(run_command("show --json", tmp_path / "r").stdout)
    assert [series["name"] for series in result["series"]] == names
    row = json.loads(run_command("tail --json", tmp_path / "r").stdout)
    assert list(row["values"]) == names


def test_shows_a_folder_whose_name_is_not_utf_8(run_copy: Path) -> None:
    other = Path(os.fsdecode(os.fsencode(run_copy.parent) + b"/bad-\xff"))
    run_copy.rename(other)
    for command in ("ls", "ls --json", "show", "show --json", "compare --json"):
        done = run_command(command, other)
        assert_handled(done, 0)


@pytest.mark.parametrize("command", ["ls", "show", "compare", "plot --term"])
def test_output_fits_into_40_columns(
    command: str, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    change_run_json(run_copy, config={"optimizer": {"a long key": "x" * 100}}, name="日本語" * 20)
    done = run_command(command, run_copy)
    assert_handled(done, 0)
    lines = [line for line in done.stdout.splitlines() if str(run_copy) not in line]
    assert max(map(cell_len, lines)) <= 40


@pytest.mark.parametrize("command", ["show", "compare", "tail", "export csv-wide"])
def test_handles_ten_thousand_names(command: str, tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log({f"layer/{number:05d}/norm": float(number) for number in range(10_000)})
    done = run_command(command, tmp_path / "r")
    assert_handled(done, 0)
    assert "layer/09999/norm" in done.stdout


@pytest.mark.parametrize("command", ["ls", "show", "tail", "plot --term", "compare", "export csv"])
def test_exits_quietly_when_the_pipe_is_closed(
    command: str, shared_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(shared_run, tmp_path / "r")
    segment = run / "journal" / "0001.jsonl"
    *lines, end, _ = segment.read_bytes().split(b"\n")
    segment.write_bytes(b"\n".join([*lines, *lines[1:] * 200, end, b""]))
    arguments = command_arguments(command, run)
    with subprocess.Popen(
        [sys.executable, "-m", "metricbus", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(HANG_SECS) in (0, 1)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert "Broken pipe" not in errors


def test_exits_quietly_when_the_pipe_is_closed_while_output_is_buffered() -> None:
    code = """
        import os
        import metricbus._cli, metricbus._cli.app
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        def app():
            print("still in Python's buffer when the reader closes the pipe")
            os.close(reader)
        metricbus._cli.app.app = app
        metricbus._cli.main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stderr=subprocess.PIPE,
        timeout=HANG_SECS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_export_cannot_control_the_terminal(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks=[], dir=tmp_path) as bus:
        bus.log("\x1b[31mred", 1.0)
    output = run_on_terminal("export", str(tmp_path / "r"))
    assert "\\x1b[31mred" in output
    assert "\x1b" not in output


def test_respects_no_color(shared_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in run_on_terminal("show", str(shared_run))
    monkeypatch.setenv("NO_COLOR", "1")
    for command in (
        ["show", str(shared_run)],
        ["plot", str(shared_run), "--term"],
        ["ls", str(shared_run)],
    ):
        assert "\x1b[3" not in run_on_terminal(*command)


def run_on_terminal(*arguments: str) -> str:
    """Run a command on a new terminal and return its output."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "metricbus", *arguments], stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        output = b""
        try:
            while part := os.read(controller, 1 << 16):
                output += part
        except OSError:  # the terminal has been closed
            pass
        process.wait(HANG_SECS)
    os.close(controller)
    return output.decode()


@pytest.mark.parametrize("command", ["show", "export csv", "compare", "deliver"])
def test_exits_quietly_with_130_on_ctrl_c(
    command: str, shared_run: Path, tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    run = shutil.copytree(shared_run, tmp_path / "r")
    segment = run / "journal" / "0001.jsonl"
    lines = segment.read_bytes().split(b"\n")
    rows = b"\n".join(lines[1:-2]) + b"\n"
    with open(segment, "wb") as file:
        file.write(lines[0] + b"\n")
        file.writelines(rows for _ in range(20_000))
    arguments = command_arguments(command, run)
    with subprocess.Popen(
        [sys.executable, "-m", "metricbus", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        wait_for(lambda: _bytes_read(process.pid) > _MORE_THAN_IMPORTS)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        assert (process.wait(HANG_SECS), errors) == (130, "")


_MORE_THAN_IMPORTS = 20 << 20  # bytes


def _bytes_read(pid: int) -> int:
    words = Path(f"/proc/{pid}/io").read_text().split()
    return int(words[words.index("rchar:") + 1])

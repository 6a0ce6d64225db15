"""Helpers that run the commands of the command line, and create a run for them to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from metricbus import MetricBus
from metricbus._cli.app import app

READERS = {
    "ls": ["ls", "RUN"],
    "ls --json": ["ls", "RUN", "--json"],
    "show": ["show", "RUN"],
    "show --json": ["show", "RUN", "--json"],
    "tail": ["tail", "RUN"],
    "tail --json": ["tail", "RUN", "--json"],
    "plot --out": ["plot", "RUN", "--out", "x.png"],
    "plot --term": ["plot", "RUN", "--term"],
    "compare": ["compare", "RUN", "RUN"],
    "compare --json": ["compare", "RUN", "RUN", "--json"],
    "export csv": ["export", "RUN"],
    "export csv-wide": ["export", "RUN", "--format", "csv-wide"],
    "export json": ["export", "RUN", "--format", "json"],
    "export parquet": ["export", "RUN", "--format", "parquet", "--out", "x.parquet"],
    "deliver": ["deliver", "RUN", "--sinks", "csv:out", "--timeout", "0.5"],
}
SINGLE_RUN_READERS = [name for name in READERS if not name.startswith("ls")]


def invoke(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def invoke_json(*arguments: object) -> Any:
    """Run a command with `--json` and return the decoded output."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def run_command(command: str, run: Path, *options: str) -> Result:
    """Run one of `READERS` on a run, in this process."""
    return invoke(*command_arguments(command, run), *options)


def command_arguments(command: str, run: Path) -> list[str]:
    """Return the arguments of one of `READERS` for a run."""
    return [str(run) if part == "RUN" else part for part in READERS[command]]


def assert_handled(result: Result, *codes: int) -> None:
    """Check that the command exited with one of the statuses and showed no traceback."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in codes, result.output
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert result.stderr.strip()


def make_run(folder: Path) -> Path:
    """Create a valid run and return its folder."""
    with MetricBus(id="r", name="good", sinks=[], dir=folder, config={"lr": 0.1}) as bus:
        for step in range(20):
            bus.log({"train/loss": 1 / (step + 1), "train/acc": step / 20}, step=step)
            if step % 3 == 0:
                bus.log("val/acc", step / 20)
    return folder / "r"


def change_run_json(run: Path, **fields: Any) -> None:
    """Replace fields in run.json."""
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))

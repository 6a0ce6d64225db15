"""The commands that read runs, as tests call them in many ways."""

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
OF_ONE_RUN = [name for name in READERS if not name.startswith("ls")]


def run_command(command: str, run: Path, *more: str) -> Result:
    """Runs one of `READERS` on a run, in this process."""
    return CliRunner().invoke(app, [*arguments_of(command, run), *more])


def arguments_of(command: str, run: Path) -> list[str]:
    """Those of one of `READERS`, for this run."""
    return [str(run) if word == "RUN" else word for word in READERS[command]]


def assert_told(done: Result, *codes: int) -> None:
    """It ended with one of the statuses, by itself, and whoever reads it sees no innards."""
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in codes, done.output
    assert "Traceback" not in done.output
    if done.exit_code == 2:
        assert done.stderr.strip()


def make_run(folder: Path) -> Path:
    """A run with nothing wrong."""
    with MetricBus(id="r", run="good", sinks=[], dir=folder, config={"lr": 0.1}) as bus:
        for step in range(20):
            bus.log({"train/loss": 1 / (step + 1), "train/acc": step / 20}, step=step)
            if step % 3 == 0:
                bus.log("val/acc", step / 20)
    return folder / "r"


def change(run: Path, **fields: Any) -> None:
    """Writes other fields into run.json."""
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))

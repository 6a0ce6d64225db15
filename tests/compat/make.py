"""Writes the run folders and checkpoints in `data/`, with metricbus 0.1.0.

`test_old_runs.py` reads, resumes and delivers them with the current version. They represent the
files that users have on disk, so regenerate them only with metricbus 0.1.0, the version before the
package was reorganized (commit 52ef15a):

    PYTHONPATH=<checkout of 52ef15a>/src python make.py

A child process writes each run through the public API. It replaces the clocks, the host name, the
script's path and `os.urandom`, and writes to `/tmp/training`. The files therefore reveal nothing
about the machine except process ids and their start times, and only these change when the files are
regenerated. No file is edited after the run.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

DATA = Path(__file__).resolve().parent / "data"
RUNS = Path("/tmp/training")  # TensorBoard's text for a table has the absolute path

HOST = "training-host"
SINKS = "csv?flush_secs=600,tensorboard?flush_secs=600"  # delivery happens only on flush()
BEGAN = 1_767_225_600 * 10**9  # 2026-01-01 00:00:00 UTC

NOT_FINITE = {1: math.nan, 2: math.inf, 3: -math.inf}


class Clock:
    """A clock that advances by one second per training step."""

    def __init__(self) -> None:
        self.now = BEGAN

    def tick(self) -> None:
        self.now += 10**9

    def nanoseconds(self) -> int:
        return self.now

    def seconds(self) -> float:
        return self.now / 1e9

    def install(self) -> None:
        """Replace the clocks of `time`. Call this before metricbus is imported."""
        mock.patch.object(time, "time_ns", self.nanoseconds).start()
        mock.patch.object(time, "perf_counter", self.seconds).start()


def conceal_machine() -> None:
    """Replace the host name, the random bytes and the path of the script."""
    uname = os.uname_result(("Linux", HOST, "6.1", "#1", "x86_64"))
    mock.patch.object(os, "uname", return_value=uname).start()
    mock.patch.object(os, "urandom", bytes).start()  # zeros
    sys.modules["__main__"].__file__ = "/home/user/train.py"


def write_killed_run() -> None:
    """Run two epochs of six steps, and kill the process at step 10, in the second epoch.

    The sinks have received steps 0 to 6, the checkpoint is from step 7, and the journal has all
    steps.
    """
    conceal_machine()
    clock = Clock()
    clock.install()
    import tensorboard.plugins.hparams.summary_v2  # noqa: F401 - imported early so that delivery does not wait
    import torch

    from metricbus import Histogram, Image, MetricBus, Table, Text

    bus = MetricBus(
        "digits",
        id="killed",
        dir=RUNS,
        sinks=SINKS,
        delivery="thread",
        project="compat",
        config={"lr": 0.5, "optimizer": {"name": "adam"}},
        tags=["old"],
        notes="Killed at step 10.",
        flush_secs=60,  # state_dict(), at the end of each step, writes the step as one row
    )
    bus.define("train/loss", every=4, reduce="mean")
    bus.define("val/acc", on_step=False, on_epoch=True)
    errors = Table(columns=["step", "guess"])
    for _ in bus.epochs(2):
        for _ in bus.steps(range(6)):
            step = bus.step
            bus.log(
                {
                    "train/loss": float(step),
                    "train/examples": 2**53 + 1 + step,
                    "train/grad": NOT_FINITE.get(step, step / 4),
                }
            )
            match step:
                case 0:
                    bus.log("weights", Histogram([0.0, 1.0, 1.0, 4.0], bins=4))
                    bus.log("notes", Text("# First try"))
                case 1:
                    errors.append([1, "cat"], [1, "=dog"])
                    bus.log("errors", errors)
                case 2:
                    bus.log("sample", Image([[0.0, 1.0], [1.0, 0.0]], caption="four pixels"))
                case 4:
                    bus.log("val/acc", 0.5, weight=2)
                case 5:
                    bus.log("val/acc", 1.0, weight=2)
                case 6:
                    bus.log("val/acc", 0.25, weight=3)
                    assert bus.flush().complete
                    time.sleep(1)  # until the sinks are idle
                case 7:
                    errors.append([7, "seal"])
                    bus.log("errors", errors)
                    bus.log("weights", Histogram([0.0, 2.0, 2.0, 8.0], bins=4))
                    state = bus.state_dict()
                    (RUNS / "checkpoint.json").write_text(json.dumps(state))
                    (RUNS / "checkpoint.pickle").write_bytes(pickle.dumps(state))
                    torch.save({"bus": state}, RUNS / "checkpoint.pt")
                case 9:
                    errors.append([9, "owl"])
                    bus.log("errors", errors)
                    bus.log("sample", Image([[1.0, 1.0], [0.0, 0.0]], caption="superseded"))
                case 10:
                    bus.log("val/acc", 0.75, weight=1)
                    bus.state_dict()
                    time.sleep(6)  # partial aggregates are journalled every 5 seconds
                    os.kill(os.getpid(), signal.SIGKILL)
            bus.state_dict()  # waits until the journal has the step
            clock.tick()


def write_finished_run() -> None:
    """Run one epoch of three steps and close the run normally."""
    conceal_machine()
    clock = Clock()
    clock.install()
    from metricbus import MetricBus

    with MetricBus("baseline", id="finished", dir=RUNS, sinks="csv", delivery="thread") as bus:
        for _ in bus.epochs(1):
            for _ in bus.steps(range(3)):
                bus.log({"train/loss": 1 / (bus.step + 1), "train/examples": 64 * (bus.step + 1)})
                bus.state_dict()
                clock.tick()


def check_killed_run() -> None:
    """Check that the journal ends with partial aggregates and the sinks have only steps 0 to 6."""
    folder = RUNS / "killed"
    lines = (folder / "journal" / "0001.jsonl").read_bytes().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert records[-1]["kind"] == "open"
    delivered = [record.get("step", 0) <= 6 for record in records].index(False)
    progress = list((folder / "offsets").glob("*.json"))
    assert len(progress) == 2
    for file in progress:
        assert json.loads(file.read_bytes())["positions"]["0001"]["line"] == delivered


def main() -> None:
    RUNS.mkdir()  # fails if it exists: it is deleted below
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("METRICBUS_")
    }
    try:
        for run, expected in (("killed", -signal.SIGKILL), ("finished", 0)):
            command = [sys.executable, __file__, run]
            assert subprocess.run(command, env=environment, check=False).returncode == expected
        check_killed_run()
        shutil.rmtree(DATA, ignore_errors=True)
        shutil.copytree(RUNS, DATA)
    finally:
        shutil.rmtree(RUNS)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["killed"]:
            write_killed_run()
        case ["finished"]:
            write_finished_run()
        case _:
            main()

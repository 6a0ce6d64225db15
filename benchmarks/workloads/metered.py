"""Logs rows by one way to log, in a process of its own, and tells what that took in all.

Two processes: the meter takes on whatever becomes an orphan below it (`PR_SET_CHILD_SUBREAPER`),
starts the one that logs, and waits until the last descendant has ended. What the kernel then tells
of each holds its own processor time and that of those it has waited for, so nothing is missed and
nothing is sampled: neither metricbus's delivery process, which is a session of its own, nor W&B's.
Only what somebody else has started is not in it: MLflow's server.

    python -m benchmarks.workloads.metered METER|LOG ARM FOLDER ROWS URI

It imports the standard library and the arm, so that it runs in any environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import PEERS, mlflow_peer, quiet
from benchmarks.workloads.ours import opened_bus

NAMES = [f"train/metric{i}" for i in range(20)]
OURS = "metricbus: "  # and the sinks
ANSWER = ".metered.json"  # beside the folder: values found, and seconds

_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_READ = ".read.json"


def rows(number: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps, each with values that differ from row to row, as they do in a training."""
    for step in range(number):
        yield step, {name: (step + i) / 7 for i, name in enumerate(NAMES)}


def log_rows(arm: str, folder: Path, number: int, uri: str) -> None:
    """Opens the arm, logs the rows, closes it; a peer's values are read back where that can be."""
    if arm.startswith(OURS):
        with opened_bus(folder, arm.removeprefix(OURS)) as bus:
            for step, row in rows(number):
                bus.log(row, step=step)
        return
    peer = mlflow_peer(folder, uri) if uri else PEERS[arm](folder)
    for step, row in rows(number):
        peer.log_row(row, step)
    peer.close()
    before = _seconds_so_far()
    found = -1 if uri else peer.count()
    _write(folder.with_suffix(_READ), {"found": found, "seconds": _seconds_so_far() - before})


def _seconds_so_far() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _write(file: Path, told: dict[str, float]) -> None:
    file.write_text(json.dumps(told))


def meter(arm: str, folder: Path, number: str, uri: str) -> float:
    """The processor seconds of all that came of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "orphans cannot be taken on: it needs Linux")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.workloads.metered", "LOG"]
    first = subprocess.Popen([*command, arm, str(folder), number, uri]).pid
    seconds = 0.0
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:  # the last one has ended
            return seconds
        seconds += usage.ru_utime + usage.ru_stime
        if pid == first and status != 0:
            raise RuntimeError(f"{arm}: ended with {os.waitstatus_to_exitcode(status)}")


def main(role: str, arm: str, folder: str, number: str, uri: str = "") -> None:
    """The meter starts the one that logs; what reading back took does not count."""
    quiet()
    if role == "LOG":
        log_rows(arm, Path(folder), int(number), uri)
        return
    told = {"found": -1, "seconds": 0.0}
    seconds = meter(arm, Path(folder), number, uri)
    if (read := Path(folder).with_suffix(_READ)).exists():
        told = json.loads(read.read_text())
    answer = {"found": told["found"], "seconds": seconds - told["seconds"]}
    _write(Path(folder).with_suffix(ANSWER), answer)


if __name__ == "__main__":
    main(*sys.argv[1:])

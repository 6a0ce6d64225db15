"""Logs rows with one arm in a separate process and measures the processor time of all processes.

There are two processes. The meter adopts orphaned descendants (`PR_SET_CHILD_SUBREAPER`), starts
the logging process, and waits until the last descendant has exited. The kernel then reports, for
each descendant, its processor time and that of the children it has waited for. The sum is therefore
complete and not sampled. It includes metricbus's delivery process, which has its own session, and
W&B's processes. It does not include processes that are started elsewhere, such as MLflow's server.

    python -m benchmarks.workloads.metered METER|LOG ARM FOLDER ROWS URI

The module imports only the standard library and the arm, so that it runs in any environment.
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
OURS = "metricbus: "  # followed by the sinks
ANSWER = ".metered.json"  # suffix of the result file, which is next to the folder

_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_READ_BACK = ".read.json"


def rows(number: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield `number` steps with 20 values each, which differ between rows."""
    for step in range(number):
        yield step, {name: (step + i) / 7 for i, name in enumerate(NAMES)}


def log_rows(arm: str, folder: Path, number: int, uri: str) -> None:
    """Open the arm, log the rows, and close the arm; write a peer's value count to a file."""
    if arm.startswith(OURS):
        with opened_bus(folder, arm.removeprefix(OURS)) as bus:
            for step, row in rows(number):
                bus.log(row, step=step)
        return
    peer = mlflow_peer(folder, uri) if uri else PEERS[arm](folder)
    for step, row in rows(number):
        peer.log_row(row, step)
    peer.close()
    before = _processor_seconds()
    found = -1 if uri else peer.count()
    seconds = _processor_seconds() - before
    _write(folder.with_suffix(_READ_BACK), {"found": found, "seconds": seconds})


def _processor_seconds() -> float:
    scopes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usages = [resource.getrusage(scope) for scope in scopes]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _write(file: Path, result: dict[str, float]) -> None:
    file.write_text(json.dumps(result))


def meter(arm: str, folder: Path, number: str, uri: str) -> float:
    """Return the processor seconds of all processes that the arm starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed; it needs Linux")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.workloads.metered", "LOG"]
    first = subprocess.Popen([*command, arm, str(folder), number, uri]).pid
    seconds = 0.0
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:  # no descendants are left
            return seconds
        seconds += usage.ru_utime + usage.ru_stime
        if pid == first and status != 0:
            exit_code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"The process for arm {arm!r} exited with {exit_code}.")


def main(role: str, arm: str, folder: str, number: str, uri: str = "") -> None:
    """Run the role; the meter writes its results without the time that reading back took."""
    quiet()
    if role == "LOG":
        log_rows(arm, Path(folder), int(number), uri)
        return
    read_back = {"found": -1, "seconds": 0.0}
    seconds = meter(arm, Path(folder), number, uri)
    if (file := Path(folder).with_suffix(_READ_BACK)).exists():
        read_back = json.loads(file.read_text())
    result = {"found": read_back["found"], "seconds": seconds - read_back["seconds"]}
    _write(Path(folder).with_suffix(ANSWER), result)


if __name__ == "__main__":
    main(*sys.argv[1:])

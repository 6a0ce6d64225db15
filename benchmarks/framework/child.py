"""Measures one case; `running` starts this module in a new process for each case.

A case is therefore not affected by imports, threads, loggers or garbage of another one. Standard
output and standard error are redirected to the standard output that `running` captures and shows
if the case fails. Progress messages go to the original standard error.

    python -m benchmarks.framework.child CASE MODULE FOLDER full|quick
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.framework.harness import Case, Context
from benchmarks.framework.machine import commit, current_machine, sample_load
from benchmarks.framework.results import Measured

RESULT_FILE = "measured.json"


def measure(case: str, module: str, context: Context) -> Measured:
    """Run the case; return its results with the conditions of the measurement."""
    load_secs = 0.1 if context.quick else 1.0
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    before = sample_load(load_secs)
    start = time.perf_counter()
    function: Case = importlib.import_module(module).measure
    results = list(function(context))
    seconds = time.perf_counter() - start
    if not results:
        raise ValueError(f"The case {case!r} returned no results.")
    return Measured(
        case=case,
        results=results,
        machine=current_machine(),
        date=date,
        seconds=round(seconds, 1),
        before=before,
        after=sample_load(load_secs),
        commit=commit(),
        quick=context.quick,
        missing=missing_peers(),
    )


def missing_peers() -> dict[str, str]:
    """Return the unavailable peers with the reasons, or nothing if the case did not use peers."""
    peers = sys.modules.get("benchmarks.peers")
    return dict(peers.MISSING) if peers else {}


def main(case: str, module: str, folder: str, extent: str) -> None:
    """Measure in the folder, and write the result file there."""
    progress = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(1, 2)
    work = Path(folder) / "work"
    work.mkdir()
    context = Context(work, extent == "quick", lambda line: print(f"    {line}", file=progress))
    measured = measure(case, module, context)
    (Path(folder) / RESULT_FILE).write_bytes(msgspec.json.encode(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])

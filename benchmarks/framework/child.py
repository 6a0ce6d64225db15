"""Measures one case in this process; `running` starts it, a fresh one for each case.

So no case pays for another's imports, threads, loggers or garbage. What the peers print goes to
standard output, which `running` keeps for the case that something fails; progress is told on the
standard error that this process was started with.

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
from benchmarks.framework.machine import commit, machine, moment
from benchmarks.framework.results import Measured

ANSWER = "measured.json"


def measure(case: str, module: str, context: Context) -> Measured:
    """What the case gives, and under which conditions."""
    seconds_to_look = 0.1 if context.quick else 1.0
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    before = moment(seconds_to_look)
    start = time.perf_counter()
    function: Case = importlib.import_module(module).measure
    results = list(function(context))
    seconds = time.perf_counter() - start
    if not results:
        raise ValueError(f"the case {case!r} has no results")
    return Measured(
        case=case,
        results=results,
        machine=machine(),
        date=date,
        seconds=round(seconds, 1),
        before=before,
        after=moment(seconds_to_look),
        commit=commit(),
        quick=context.quick,
        missing=missing_peers(),
    )


def missing_peers() -> dict[str, str]:
    """The peers that are not measured here, and why, if the case asked for peers at all."""
    peers = sys.modules.get("benchmarks.peers")
    return dict(peers.MISSING) if peers else {}


def main(case: str, module: str, folder: str, extent: str) -> None:
    """Measures in the folder, and writes there what was measured."""
    telling = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(1, 2)
    work = Path(folder) / "work"
    work.mkdir()
    context = Context(work, extent == "quick", lambda line: print(f"    {line}", file=telling))
    measured = measure(case, module, context)
    (Path(folder) / ANSWER).write_bytes(msgspec.json.encode(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])

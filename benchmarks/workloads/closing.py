"""Measures one `close()` for the case `flush_close`, of a bus or of a single backend.

The worker process is `python -m benchmarks.workloads.closing NAME SINKS`. It works in the current
directory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.framework.fresh import run_fresh
from benchmarks.peers import PEERS
from benchmarks.peers.services import empty_database
from benchmarks.workloads.flushing import NAMES, row
from benchmarks.workloads.ours import LOG, RUN, log_file, values_by_sink
from benchmarks.workloads.own_sinks import complete
from metricbus import MetricBus

AT_CLOSE = 2_000
CLOSE = "MetricBus.close(), five sinks"
CLOSE_PENDING = f"{CLOSE}, {AT_CLOSE:,} values pending"


def close_in_new_process(name: str, sinks: str, folder: Path) -> float:
    """Run `close_here` in a new interpreter that works in `folder`; return its result."""
    return float(run_fresh(["-m", __name__, name, sinks], folder).split()[-1])


def close_here(name: str, sinks: str, folder: Path) -> float:
    """Log values and close; return the duration of the close in milliseconds.

    `name` selects a peer, or else one of the bus's arms with these sinks. Raises if any logged
    value cannot be read back.
    """
    return _close_peer(name, folder) if name in PEERS else _close_bus(name, sinks, folder)


def _close_peer(name: str, folder: Path) -> float:
    peer = PEERS[name](folder / "peer")
    for step in range(AT_CLOSE // len(NAMES)):
        peer.log_row(row(step), step)
    peer.flush()
    milliseconds = _milliseconds(peer.close)
    complete(name, peer.count, AT_CLOSE)
    return milliseconds


def _close_bus(name: str, sinks: str, folder: Path) -> float:
    if "mlflow" in sinks:
        empty_database(folder / "mlflow.db")
    with log_file(folder / LOG):
        bus = MetricBus(id=RUN, sinks=sinks, dir=folder, close_timeout=120)
        bus.log(row(0), step=0)
        bus.flush()  # opens all backends
        for step in range(1, AT_CLOSE // len(NAMES)):
            bus.log(row(step), step=step)
        if name == CLOSE:
            bus.flush()
        milliseconds = _milliseconds(bus.close)
    if not bus.stats().complete:
        raise RuntimeError(f"Values not delivered at close:\n{bus.stats()}")
    for sink in sinks.split(","):
        complete(sink, partial(_count_values, sink, folder), AT_CLOSE)
    return milliseconds


def _count_values(sink: str, folder: Path) -> int:
    return values_by_sink(folder, sink)[sink]


def _milliseconds(close: Callable[[], object]) -> float:
    start = time.perf_counter()
    close()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    print(close_here(sys.argv[1], sys.argv[2], Path.cwd()))

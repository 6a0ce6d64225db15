"""Duration of `flush()` with many pending values, and of `close()` with five sinks.

`flush()` is measured repeatedly in this process, with the journal only. `close()` happens once per
run, so each sample uses a new process (`benchmarks.workloads.closing`); it is compared with closing
each backend through its own API after the same values. Everything is read back.
"""

from __future__ import annotations

import gc
import shutil
import statistics
from collections.abc import Callable

import msgspec

from benchmarks.framework.harness import Context, Figure, Result, Target, interleaved
from benchmarks.peers import PEERS
from benchmarks.workloads.closing import AT_CLOSE, CLOSE, CLOSE_PENDING, close_in_new_process
from benchmarks.workloads.flushing import (
    PENDING,
    Bytes,
    Events,
    Flush,
    LogRecords,
    Mappings,
    SingleValues,
)
from benchmarks.workloads.ours import ALL
from benchmarks.workloads.reading import complete

QUICK_SINKS = "logging,csv,tensorboard"  # W&B and MLflow start slowly
SINGLE, MAPPINGS = "MetricBus.flush(), single values", "MetricBus.flush(), mappings of 20"
BACKEND_CLOSES = {
    "logging": "FileHandler.close",
    "SummaryWriter": "SummaryWriter.close",
    "wandb, one mapping per call": "wandb Run.finish",
    "mlflow, sqlite, log_batch": "MlflowClient.set_terminated",
}


def measure(context: Context) -> list[Result]:
    """Measure `flush()`, then `close()`."""
    return [_flush_table(context), _close_table(context)]


def _flush_table(context: Context) -> Result:
    fast: dict[str, Flush] = {
        "encoding and writing the same rows": Bytes(context.new_folder("flush")),
        SINGLE: SingleValues(context.new_folder("flush")),
        MAPPINGS: Mappings(context.new_folder("flush")),
    }
    slow: dict[str, Flush] = {
        "MemoryHandler.flush, one record per value": LogRecords(context.new_folder("flush")),
        "SummaryWriter.flush": Events(context.new_folder("flush")),
    }
    gc.collect()
    context.log("flush()")
    samples = interleaved(fast, context.pick(40, 5), warm_up=True)
    # These take up to half a second for 10,000 calls.
    samples |= interleaved(slow, context.pick(3, 1))
    figures = []
    for name, flush in (fast | slow).items():
        read_back = complete(name, flush.close(), flush.logged)
        figures.append(Figure(name, samples[name], flush.role, read_back=read_back))
        if name in fast:
            p99 = [_p99(samples[name])]
            figures.append(Figure(f"{name}: p99", p99, flush.role, read_back=read_back))
    result = Result(
        id="flush",
        title=f"flush() with {PENDING:,} pending values",
        text=(
            f"Medians and 99th percentiles of {len(samples[SINGLE])} flushes. The bus writes only "
            "the journal, and nothing is written before the flush. A flush waits for another "
            "thread that does the work; the floor does the same work in the calling thread. "
            "`SummaryWriter` has a thread that writes continuously, so its flush only waits for "
            "the remaining values, but its calls take longer."
        ),
        unit="ms",
        figures=figures,
        baseline=SINGLE,
    )
    targets = [
        Target(f"{name}: p99", result.figure(f"{name}: p99").median, 20.0, "ms")
        for name in (SINGLE, MAPPINGS)
    ]
    return msgspec.structs.replace(result, targets=targets)


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[98]


def _close_table(context: Context) -> Result:
    wanted = list(BACKEND_CLOSES)[: context.pick(len(BACKEND_CLOSES), 2)]
    backends = {name: BACKEND_CLOSES[name] for name in wanted if name in PEERS}
    ours = (CLOSE, CLOSE_PENDING)[: context.pick(2, 1)]
    arms = {name: _closing(context, name) for name in (*ours, *backends)}
    context.log(f"close(), {len(arms)} arms")
    samples = interleaved(arms, context.pick(2, 1))
    read_back = f"{AT_CLOSE:,} of {AT_CLOSE:,}"
    figures = [Figure(name, samples[name], "ours", read_back=read_back) for name in ours]
    figures += [
        Figure(title, samples[name], read_back=read_back) for name, title in backends.items()
    ]
    slowest = [max(times) for times in zip(*(samples[name] for name in backends), strict=True)]
    bound = Figure("slowest backend of each round", slowest, "floor")
    measured = statistics.median(
        ours_ms / backend_ms for ours_ms, backend_ms in zip(samples[CLOSE], slowest, strict=True)
    )
    return Result(
        id="close",
        title="close() with five sinks",
        text=(
            f"Each arm runs in a new process and closes after {AT_CLOSE:,} values, 20 per step. "
            "Values are flushed first if the backend has a flush method, except in the arm with "
            "pending values. The backends are closed through their own APIs after the same values; "
            "`Run.finish` also writes the values that W&B has buffered. MetricBus closes its five "
            "sinks concurrently, in another process."
        ),
        unit="ms",
        figures=[bound, *figures],
        targets=[Target(f"{CLOSE}, relative to the slowest backend", measured, 1.0)],
        baseline=CLOSE,
    )


def _closing(context: Context, name: str) -> Callable[[int], float]:
    sinks = QUICK_SINKS if context.quick else ALL

    def run(_: int) -> float:
        folder = context.new_folder("close")
        milliseconds = close_in_new_process(name, sinks, folder)
        shutil.rmtree(folder)
        return milliseconds

    return run

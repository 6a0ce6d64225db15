"""How long the ends take: `flush()` with much that waits, and `close()` with five sinks.

`flush()` is measured again and again in this process, with nothing but the journal behind it; each
way to flush in turn. `close()` happens once a run, so each is in a process of its own
(`benchmarks.workloads.closing`), beside the backends' own closes after the same values. Everything
is read back.
"""

from __future__ import annotations

import gc
import shutil
import statistics
from collections.abc import Callable

import msgspec

from benchmarks.framework.harness import Context, Figure, Result, Target, interleaved
from benchmarks.peers import PEERS
from benchmarks.workloads.closing import AT_CLOSE, CLOSE, CLOSE_PENDING, close_apart
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

QUICK = "logging,csv,tensorboard"  # W&B and MLflow take their time to come up
SINGLE, TOGETHER = "MetricBus.flush(), single values wait", "MetricBus.flush(), mappings of 20 wait"
OWN_CLOSES = {
    "logging": "FileHandler.close",
    "SummaryWriter": "SummaryWriter.close",
    "wandb, a mapping a call": "wandb's Run.finish",
    "mlflow, sqlite, log_batch": "mlflow's set_terminated",
}


def measure(context: Context) -> list[Result]:
    """`flush()`, then `close()`."""
    return [_flushes(context), _closes(context)]


def _flushes(context: Context) -> Result:
    ways: dict[str, Flush] = {
        "the same rows encoded and written": Bytes(context.place("ends-flush")),
        SINGLE: SingleValues(context.place("ends-flush")),
        TOGETHER: Mappings(context.place("ends-flush")),
    }
    slow: dict[str, Flush] = {
        "MemoryHandler.flush, a record a value": LogRecords(context.place("ends-flush")),
        "SummaryWriter.flush": Events(context.place("ends-flush")),
    }
    gc.collect()
    context.tell("ends: flush()")
    seen = interleaved(ways, context.pick(40, 5), warm_up=True)
    seen |= interleaved(slow, context.pick(3, 1))  # 10,000 calls take them up to half a second
    figures = []
    for name, way in (ways | slow).items():
        whole = complete(name, way.close(), way.logged)
        figures.append(Figure(name, seen[name], way.role, complete=whole))
        if name in ways:
            figures.append(Figure(f"{name}: p99", [_p99(seen[name])], way.role, complete=whole))
    result = Result(
        id="ends-flush",
        title=f"flush() with {PENDING:,} values that wait",
        text=(
            f"Medians, and the 99th percentile of {len(seen[SINGLE])} flushes. Behind the bus is "
            "the journal alone, and nothing is written before the flush, which has another thread "
            "do it; the floor does it on the spot. `SummaryWriter` has a thread that writes all "
            "the time: its flush waits for what is left, and its calls have taken longer."
        ),
        unit="ms",
        figures=figures,
        beside=SINGLE,
    )
    targets = [
        Target(f"{name}: p99", result.figure(f"{name}: p99").median, 20.0, "ms")
        for name in (SINGLE, TOGETHER)
    ]
    return msgspec.structs.replace(result, targets=targets)


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[98]


def _closes(context: Context) -> Result:
    wanted = list(OWN_CLOSES)[: context.pick(len(OWN_CLOSES), 2)]
    own = {name: OWN_CLOSES[name] for name in wanted if name in PEERS}
    ours = (CLOSE, CLOSE_PENDING)[: context.pick(2, 1)]
    arms = {name: _closing(context, name) for name in (*ours, *own)}
    context.tell(f"ends: close(), {len(arms)} ways")
    seen = interleaved(arms, context.pick(2, 1))
    whole = f"{AT_CLOSE:,} of {AT_CLOSE:,}"
    figures = [Figure(name, seen[name], "ours", complete=whole) for name in ours]
    figures += [Figure(title, seen[name], complete=whole) for name, title in own.items()]
    slowest = [max(times) for times in zip(*(seen[name] for name in own), strict=True)]
    bound = Figure("the slowest of these in each round", slowest, "floor")
    beside = statistics.median(one / other for one, other in zip(seen[CLOSE], slowest, strict=True))
    return Result(
        id="ends-close",
        title="close() with five sinks",
        text=(
            f"After {AT_CLOSE:,} values, 20 a step, in a process of its own each. What was logged "
            "is flushed before, where the backend has such a call. The backends' own closes are "
            "those of their own interfaces, after the same values; Run.finish also writes what "
            "W&B has kept back. MetricBus closes its five at the same time, in another process."
        ),
        unit="ms",
        figures=[bound, *figures],
        targets=[Target(f"{CLOSE}, beside the slowest backend's own close", beside, 1.0)],
        beside=CLOSE,
    )


def _closing(context: Context, name: str) -> Callable[[int], float]:
    sinks = QUICK if context.quick else ALL

    def run(_: int) -> float:
        folder = context.place("ends-close")
        milliseconds = close_apart(name, sinks, folder)
        shutil.rmtree(folder)
        return milliseconds

    return run

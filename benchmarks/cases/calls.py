"""Cost of a call on the calling thread: `log(name, value)` and `log(mapping of 20)`.

Each arm runs in a pyperf worker process (`benchmarks.workloads.call_worker`). All workers are
opened first, and then measured one at a time, in rounds of alternating order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyperf

from benchmarks.framework.harness import Context, Figure, Result, Role, Target, ratio
from benchmarks.peers import MISSING, mlflow_server, quiet
from benchmarks.peers.services import make_template
from benchmarks.workloads.call_workers import Worker, WorkerResult, measure_together, result_of
from benchmarks.workloads.ours import ALL, values_by_sink
from benchmarks.workloads.reading import complete

SERVER = "mlflow, server"
SCALARS = 20  # values in the mapping
NANO = 1e9


class ArmSpec(NamedTuple):
    """An arm: its name in the results, its key in the worker, and the calls per sample."""

    name: str
    key: str
    calls: int
    role: Role = "peer"
    quick: bool = True  # whether quick runs include it

    @property
    def is_missing(self) -> bool:
        """Whether a package that the arm needs is not installed."""
        return self.key.removesuffix(": row") in MISSING


DEQUE, LOG, MAPPING = "deque.append((name, value, step))", "log(name, value, step=)", "log(mapping)"
DELIVERING = "log(name, value, step=), sinks delivering"
VALUES = [
    ArmSpec(DEQUE, "deque", 5_000, "floor"),
    ArmSpec("a method with time_ns() and append", "method", 5_000, "floor"),
    ArmSpec(LOG, "log", 3_000, "ours"),
    ArmSpec("log(name, value) in bus.steps()", "log, in steps", 2_000, "ours", quick=False),
    ArmSpec("log(name, tensor, step=)", "log, tensor", 2_000, "ours", quick=False),
    ArmSpec("log(…) on a disabled bus", "log, disabled", 5_000, "ours"),
    ArmSpec("Lightning CSVLogger", "Lightning CSVLogger", 2_000, quick=False),
    ArmSpec("logging.info", "logging", 1_000),
    ArmSpec("trackio.log", "trackio", 500, quick=False),
    ArmSpec("CLU write_scalars", "CLU", 500, quick=False),
    ArmSpec("SummaryWriter.add_scalar", "SummaryWriter", 500),
    ArmSpec("tensorboardX add_scalar", "tensorboardX", 500, quick=False),
    ArmSpec("Lightning TensorBoardLogger", "Lightning TensorBoardLogger", 500, quick=False),
    ArmSpec("wandb Run.log", "wandb", 300, quick=False),
    ArmSpec("mlflow log_metric, sqlite", "mlflow, sqlite", 30, quick=False),
    ArmSpec("mlflow log_metric, server", SERVER, 15, quick=False),
]
ROWS = [
    ArmSpec("deque.append(dict(mapping))", "dict", 1_000, "floor"),
    ArmSpec(MAPPING, "log, mapping", 300, "ours"),
    ArmSpec("Lightning CSVLogger", "Lightning CSVLogger: row", 500, quick=False),
    ArmSpec("logging.info", "logging: row", 200),
    ArmSpec("trackio.log", "trackio: row", 100, quick=False),
    ArmSpec("wandb Run.log", "wandb, one mapping per call: row", 100, quick=False),
    ArmSpec("mlflow log_batch, sqlite", "mlflow, sqlite, log_batch: row", 15, quick=False),
]
SUSTAINED = ArmSpec(DELIVERING, "log, delivering", 4_000, "ours", quick=False)
VALUES_TEXT = """\
Each arm runs in its own pyperf worker process. All workers are opened first, and then measured one
at a time in alternating order, while the others are suspended (SIGSTOP). A sample is the mean
duration of a call in one round, after half as many untimed calls. The time of an empty loop is
subtracted; for peers, this loop calls an empty wrapper method. For metricbus, all five sinks are
enabled, but delivery is deferred until after the measurements, so that only the calling thread is
timed. Peers that have a flush method flush between the rounds. At the end, everything is closed and
read back from every backend.
"""
ROWS_TEXT = """\
The same method, with 20 values per call. The duration of a call is divided by 20.
"""
DELIVERING_TEXT = """\
The same loops without deferred delivery: metricbus writes the journal and delivers to all five
sinks with default settings while the loop calls it without a pause. `CPU time` is the CPU time of
the calling thread. The wall-clock time also includes the time that other threads of the process
take from it.
"""
OWN_SINKS = ("log", "log, in steps", "log, tensor", "log, mapping", "log, delivering")


class ArmResult(NamedTuple):
    """Samples of one arm, in nanoseconds per call, and what was read back."""

    wall: list[float]
    cpu: list[float]
    read_back: str


def measure(context: Context) -> list[Result]:
    """Measure all arms in one run; return up to three tables."""
    quiet()
    arms = [arm for arm in (*VALUES, *ROWS, SUSTAINED) if not arm.is_missing]
    arms = [arm for arm in arms if arm.quick or not context.quick]
    results = measure_arms(context, arms)
    tables = [values_table(arms, results), rows_table(arms, results)]
    return [*tables, *([delivering_table(arms, results)] if SUSTAINED in arms else [])]


def measure_arms(context: Context, arms: Sequence[ArmSpec]) -> dict[str, ArmResult]:
    """Measure the arms; save pyperf's own results in the folder of the case."""
    rounds = context.pick(3, 2)
    folder = context.new_folder("calls")
    make_template(folder)
    with _server(folder, arms) as uri:
        context.log(f"{len(arms)} arms, {rounds} rounds")
        workers = {
            arm.key: Worker(
                arm.key,
                folder / str(number),
                calls=arm.calls // context.pick(1, 5),
                rounds=rounds,
                uri=uri if arm.key == SERVER else "",
            )
            for number, arm in enumerate(arms)
        }
        suites = measure_together(workers, rounds)
        results = {
            arm: _read_back(arm, result_of(suite), workers[arm].folder)
            for arm, suite in suites.items()
        }
    _save_pyperf(suites.values(), context.folder / "calls.pyperf.json")
    return results


@contextlib.contextmanager
def _server(folder: Path, arms: Sequence[ArmSpec]) -> Iterator[str]:
    if any(arm.key == SERVER for arm in arms):
        with mlflow_server(folder / "server") as uri:
            yield uri
    else:
        yield ""


def _read_back(arm: str, result: WorkerResult, run: Path) -> ArmResult:
    """Raise unless everything was logged; for metricbus, check the journal and all five sinks."""
    found = dict(values_by_sink(run, ALL)) if arm in OWN_SINKS else {arm: result.found}
    texts = [complete(name, count, result.logged) for name, count in found.items()]
    text = f"{texts[0]}, in each sink" if arm in OWN_SINKS else texts[0]
    wall, cpu = ([sample * NANO for sample in some] for some in (result.wall, result.cpu))
    return ArmResult(wall, cpu, text)


def _save_pyperf(suites: Iterable[Any], file: Path) -> None:
    """Save all runs in pyperf's format, with the name of the arm as a prefix."""
    runs: dict[str, list[Any]] = {}
    for suite in suites:
        for bench in suite:
            name = f"{bench.get_metadata()['arm']}, {bench.get_name()}"
            runs.setdefault(name, []).extend(_renamed(run, name) for run in bench.get_runs())
    benchmarks = [pyperf.Benchmark(of_arm) for of_arm in runs.values()]
    pyperf.BenchmarkSuite(benchmarks).dump(str(file))


def _renamed(run: Any, name: str) -> Any:
    metadata = {**run.get_metadata(), "name": name}
    return pyperf.Run(run.values, warmups=run.warmups, metadata=metadata, collect_metadata=False)


def values_table(arms: Sequence[ArmSpec], results: dict[str, ArmResult]) -> Result:
    """Return the table of calls with one value."""
    figures = [_figure(arm, results[arm.key]) for arm in arms if arm in VALUES]
    title = "One value per call, on the calling thread"
    result = Result("calls", title, VALUES_TEXT, "ns", figures)
    measured = ratio(result.figure(LOG), result.figure(DEQUE))
    name = "log(name, float, step=) with five sinks, relative to a bare deque.append"
    return msgspec.structs.replace(result, targets=[Target(name, measured, 3.5)], baseline=LOG)


def rows_table(arms: Sequence[ArmSpec], results: dict[str, ArmResult]) -> Result:
    """Return the table of calls with twenty values, per value."""
    figures = [_figure(arm, results[arm.key], SCALARS) for arm in arms if arm in ROWS]
    measured = next(figure.median for figure in figures if figure.name == MAPPING)
    target = Target("log(mapping of 20), per value", measured, 80, "ns")
    title = "One mapping of 20 values per call, time per value"
    return Result("calls-mapping", title, ROWS_TEXT, "ns", figures, [target], baseline=MAPPING)


def delivering_table(arms: Sequence[ArmSpec], results: dict[str, ArmResult]) -> Result:
    """Return the table of calls during delivery: wall-clock time, and CPU time of the caller."""
    shown = [arm for arm in arms if arm is SUSTAINED or arm.key == "deque"]
    shown += [arm for arm in arms if arm in VALUES and arm.role == "peer"]
    figures = []
    for arm in shown:
        wall = _figure(arm, results[arm.key])
        cpu = msgspec.structs.replace(
            wall, name=f"{arm.name}: CPU time", samples=results[arm.key].cpu
        )
        figures += [wall, cpu]
    title = "One value per call while all sinks deliver"
    return Result("calls-delivering", title, DELIVERING_TEXT, "ns", figures, baseline=DELIVERING)


def _figure(arm: ArmSpec, result: ArmResult, values: int = 1) -> Figure:
    samples = [sample / values for sample in result.wall]
    return Figure(arm.name, samples, arm.role, read_back=result.read_back)

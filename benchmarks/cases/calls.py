"""What a call costs on the caller's thread: `log(name, value)` and `log(mapping of 20)`.

Each arm has a worker process of pyperf (`benchmarks.workloads.call_worker`). All workers are opened
together; then they are measured one at a time, in rounds there and back.
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
from benchmarks.workloads.call_workers import Seen, Worker, measure_together, seen_in
from benchmarks.workloads.ours import ALL, values_by_sink
from benchmarks.workloads.reading import complete

SERVER = "mlflow, server"
SCALARS = 20  # in the mapping
NANO = 1e9


class Way(NamedTuple):
    """An arm: what it is called here, its name in the worker, and how many calls make a value."""

    name: str
    arm: str
    calls: int
    role: Role = "peer"
    quick: bool = True  # whether a quick run has it

    @property
    def is_missing(self) -> bool:
        """Whether it needs a package that is not here."""
        return self.arm.removesuffix(": row") in MISSING


DEQUE, LOG, MAPPING = "deque.append((name, value, step))", "log(name, value, step=)", "log(mapping)"
AT_WORK = "log(name, value, step=), sinks at work"
VALUES = [
    Way(DEQUE, "deque", 5_000, "floor"),
    Way("a method with time_ns() and append", "method", 5_000, "floor"),
    Way(LOG, "log", 3_000, "ours"),
    Way("log(name, value) in bus.steps()", "log, in steps", 2_000, "ours", quick=False),
    Way("log(name, tensor, step=)", "log, tensor", 2_000, "ours", quick=False),
    Way("log(…) of a disabled bus", "log, disabled", 5_000, "ours"),
    Way("Lightning CSVLogger", "Lightning CSVLogger", 2_000, quick=False),
    Way("logging.info", "logging", 1_000),
    Way("trackio.log", "trackio", 500, quick=False),
    Way("CLU write_scalars", "CLU", 500, quick=False),
    Way("SummaryWriter.add_scalar", "SummaryWriter", 500),
    Way("tensorboardX add_scalar", "tensorboardX", 500, quick=False),
    Way("Lightning TensorBoardLogger", "Lightning TensorBoardLogger", 500, quick=False),
    Way("wandb Run.log", "wandb", 300, quick=False),
    Way("mlflow log_metric, sqlite", "mlflow, sqlite", 30, quick=False),
    Way("mlflow log_metric, server", SERVER, 15, quick=False),
]
ROWS = [
    Way("dict(mapping), deque.append", "dict", 1_000, "floor"),
    Way(MAPPING, "log, mapping", 300, "ours"),
    Way("Lightning CSVLogger", "Lightning CSVLogger: row", 500, quick=False),
    Way("logging.info", "logging: row", 200),
    Way("trackio.log", "trackio: row", 100, quick=False),
    Way("wandb Run.log", "wandb, a mapping a call: row", 100, quick=False),
    Way("mlflow log_batch, sqlite", "mlflow, sqlite, log_batch: row", 15, quick=False),
]
SUSTAINED = Way(AT_WORK, "log, at work", 4_000, "ours", quick=False)
VALUES_TEXT = """\
Each arm has a worker process of pyperf. All of them are opened, then measured one at a time in
rounds, there and back, while the others stand still (SIGSTOP); a sample is the mean call of one
round, after half as many that are not timed. The empty loop is taken off, and of peers also the
Python method that stands between. With metricbus, all five sinks are on and get everything
afterwards, so that the caller is timed alone; peers write between the rounds what they kept, where
they can be told to. Then everything is closed and read back from every backend.
"""
ROWS_TEXT = """\
As above, with 20 values in one call. The call's time is divided by 20.
"""
WORK_TEXT = """\
The same loops with nothing held back: metricbus journals and delivers to all five sinks by its
defaults while it is called without a pause. `processor` is the processor time of the calling thread
alone; the wall's time also has what other threads of the process took from it.
"""
OWN_SINKS = ("log", "log, in steps", "log, tensor", "log, mapping", "log, at work")


class Told(NamedTuple):
    """What one arm gave: nanoseconds a call, and what was read back."""

    wall: list[float]
    processor: list[float]
    complete: str


def measure(context: Context) -> list[Result]:
    """All arms in one run; three tables of them."""
    quiet()
    ways = [way for way in (*VALUES, *ROWS, SUSTAINED) if not way.is_missing]
    ways = [way for way in ways if way.quick or not context.quick]
    told = launched(context, ways)
    values, rows = of_values(ways, told), of_rows(ways, told)
    return [values, rows, *([at_work(ways, told)] if SUSTAINED in ways else [])]


def launched(context: Context, ways: Sequence[Way]) -> dict[str, Told]:
    """What each arm gave; pyperf's own file of it stands in the folder."""
    rounds = context.pick(3, 2)
    place = context.place("calls")
    make_template(place)
    with _server(place, ways) as uri:
        context.tell(f"{len(ways)} arms, {rounds} rounds")
        workers = {
            way.arm: Worker(
                way.arm,
                place / str(number),
                calls=way.calls // context.pick(1, 5),
                rounds=rounds,
                uri=uri if way.arm == SERVER else "",
            )
            for number, way in enumerate(ways)
        }
        suites = measure_together(workers, rounds)
        told = {
            arm: _read_back(arm, seen_in(suite), workers[arm].folder)
            for arm, suite in suites.items()
        }
    _keep(suites.values(), context.folder / "calls.pyperf.json")
    return told


@contextlib.contextmanager
def _server(place: Path, ways: Sequence[Way]) -> Iterator[str]:
    if any(way.arm == SERVER for way in ways):
        with mlflow_server(place / "server") as uri:
            yield uri
    else:
        yield ""


def _read_back(arm: str, seen: Seen, run: Path) -> Told:
    """Raises unless all that was logged is there, with ours in the journal and all five sinks."""
    found = dict(values_by_sink(run, ALL)) if arm in OWN_SINKS else {arm: seen.found}
    words = [complete(place, count, seen.logged) for place, count in found.items()]
    note = f"{words[0]}, in each sink" if arm in OWN_SINKS else words[0]
    wall, processor = ([one * NANO for one in some] for some in (seen.wall, seen.processor))
    return Told(wall, processor, note)


def _keep(suites: Iterable[Any], file: Path) -> None:
    """All runs in pyperf's format, each with the arm's name in front."""
    runs: dict[str, list[Any]] = {}
    for suite in suites:
        for bench in suite:
            name = f"{bench.get_metadata()['arm']}, {bench.get_name()}"
            runs.setdefault(name, []).extend(_renamed(run, name) for run in bench.get_runs())
    kept = [pyperf.Benchmark(some) for some in runs.values()]
    pyperf.BenchmarkSuite(kept).dump(str(file))


def _renamed(run: Any, name: str) -> Any:
    metadata = {**run.get_metadata(), "name": name}
    return pyperf.Run(run.values, warmups=run.warmups, metadata=metadata, collect_metadata=False)


def of_values(ways: Sequence[Way], told: dict[str, Told]) -> Result:
    """One value a call."""
    figures = [_figure(way, told[way.arm]) for way in ways if way in VALUES]
    result = Result("calls", "One value a call, on the caller's thread", VALUES_TEXT, "ns", figures)
    seen = ratio(result.figure(LOG), result.figure(DEQUE))
    target = Target(
        "log(name, float, step=) beside a bare deque.append, all five sinks on", seen, 3.5
    )
    return msgspec.structs.replace(result, targets=[target], beside=LOG)


def of_rows(ways: Sequence[Way], told: dict[str, Told]) -> Result:
    """Twenty values a call, told for one of them."""
    figures = [_figure(way, told[way.arm], SCALARS) for way in ways if way in ROWS]
    seen = next(figure.median for figure in figures if figure.name == MAPPING)
    target = Target("log(mapping of 20), for each scalar", seen, 80, "ns")
    title = "A mapping of 20 values a call, for each value"
    return Result("calls-mapping", title, ROWS_TEXT, "ns", figures, [target], beside=MAPPING)


def at_work(ways: Sequence[Way], told: dict[str, Told]) -> Result:
    """The wall time of a call, and the processor time of the thread that made it."""
    shown = [way for way in ways if way is SUSTAINED or way.arm == "deque"]
    shown += [way for way in ways if way in VALUES and way.role == "peer"]
    figures = []
    for way in shown:
        wall = _figure(way, told[way.arm])
        own = msgspec.structs.replace(
            wall, name=f"{way.name}: processor", samples=told[way.arm].processor
        )
        figures += [wall, own]
    title = "One value a call while everything is at work"
    return Result("calls-at-work", title, WORK_TEXT, "ns", figures, beside=AT_WORK)


def _figure(way: Way, told: Told, values: int = 1) -> Figure:
    samples = [value / values for value in told.wall]
    return Figure(way.name, samples, way.role, complete=told.complete)

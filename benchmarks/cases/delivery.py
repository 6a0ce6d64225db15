"""Values a second into each backend: by metricbus's sinks, and by the backends' own APIs.

Metricbus does what a consumer does from a journal that is there already. An arm ends when its
backend has closed; what opening costs is left out. What each has written is read back every time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.framework.harness import Context, Figure, Result, Role, Target, interleaved, ratio
from benchmarks.peers import PEERS, mlflow_peer, mlflow_server
from benchmarks.peers.services import MlflowBatches, empty_database
from benchmarks.workloads import delivering, reading
from benchmarks.workloads.delivering import (
    NAMES,
    Opened,
    by_sink,
    journal,
    row_by_row,
    value_by_value,
)
from benchmarks.workloads.own_sinks import DATABASE, VALUES, complete, lines_in

ROUNDS = 2
WARM_UP_ROWS = 10
QUICK = 50  # times fewer rows in a quick run
OURS = "metricbus"

TEXT = """\
Values a second, in rows of {values} values. metricbus reads them from a journal that is there
already and does what its delivery does, without pauses; the others make them up in a loop. An arm
ends when the backend has closed and everything has been written. Opening is left out. The floor is
{floor}.\
"""

FULL_BATCHES = "`log_batch` with 1,000 metrics a call, the most that MLflow takes"

Open = Callable[[Path, int], Opened]
"""Opens an arm for so many rows in a new folder."""


class Arm(NamedTuple):
    """One way to bring so many rows into a backend."""

    name: str
    role: Role
    rows: int
    open: Open


class Backend(NamedTuple):
    """The arms of one table, and how many times as fast as others metricbus is to be.

    The table has everything beside the first of these others.
    """

    id: str
    title: str
    floor: str
    limits: Mapping[str, float]
    arms: Sequence[Arm]


def measure(context: Context) -> list[Result]:
    """A result for each backend; MLflow has two, by where it is.

    A quick run has no server, which takes long to come up.
    """
    backends = [into_csv(), into_logs(), into_tensorboard(), into_wandb(), into_mlflow_file()]
    with ExitStack() as exits:
        if not context.quick:
            server = exits.enter_context(mlflow_server(context.place("server")))
            backends.append(into_mlflow_server(server))
        return [measure_backend(context, backend) for backend in backends]


def measure_backend(context: Context, backend: Backend) -> Result:
    """The rates of all arms, round by round in turn."""
    context.tell(backend.title)
    rounds = context.pick(ROUNDS, 1)
    arms = {arm.name: partial(rate, context, arm) for arm in backend.arms}
    seen = interleaved(arms, rounds, warm_up=not context.quick)
    figures = [figure_of(context, arm, seen[arm.name]) for arm in backend.arms]
    named = {figure.name: figure for figure in figures}
    return Result(
        id=f"delivery-{backend.id}",
        title=backend.title,
        text=TEXT.format(values=len(NAMES), floor=backend.floor),
        unit="values/s",
        figures=figures,
        targets=[
            Target(
                f"{backend.title}: beside {name}",
                ratio(named[OURS], named[name]),
                limit,
                at_most=False,
            )
            for name, limit in backend.limits.items()
        ],
        beside=next(iter(backend.limits)),
        better="more",
    )


def rate(context: Context, arm: Arm, number: int) -> float:
    """Values a second; raises unless all of them are there."""
    rows = rows_of(context, arm) if number >= 0 else WARM_UP_ROWS
    place = context.place("delivery")
    with lines_in(place):
        opened = arm.open(place, rows)
        gc.collect()
        start = time.perf_counter()
        opened.write()
        seconds = time.perf_counter() - start
    values = rows * len(NAMES)
    complete(arm.name, opened.read_back, values)
    return values / seconds


def rows_of(context: Context, arm: Arm) -> int:
    """How many rows an arm writes in each round."""
    return context.pick(arm.rows, max(1, arm.rows // QUICK))


def figure_of(context: Context, arm: Arm, samples: list[float]) -> Figure:
    """The arm's rates; only complete ones have come so far."""
    values = rows_of(context, arm) * len(NAMES)
    return Figure(arm.name, samples, arm.role, complete=f"{values:,} of {values:,}")


def ours(rows: int, sink: str) -> Arm:
    """A sink that writes into the run's folder or beside it."""
    kind = sink.partition("?")[0]

    def open_sink(place: Path, rows: int) -> Opened:
        if kind == "mlflow":
            empty_database(place / DATABASE)
        return by_sink(journal(place, rows), sink, partial(VALUES[kind], place))

    return Arm(OURS, "ours", rows, open_sink)


def each(name: str, called: str, rows: int) -> Arm:
    """A peer, called once a value."""
    return Arm(called, "peer", rows, lambda to, rows: value_by_value(PEERS[name](to), rows))


def whole(name: str, called: str, rows: int) -> Arm:
    """A peer, called once a row."""
    return Arm(called, "peer", rows, lambda to, rows: row_by_row(PEERS[name](to), rows))


def into_csv() -> Backend:
    """One file with a line a value; Lightning's has a column a name."""
    rows = 5000
    values, whole_rows = "CSVLogger, a value a call", "CSVLogger, 20 values a call"
    return Backend(
        "csv",
        "Into CSV",
        "`csv.writer` with the same lines, in one `writerows`",
        {values: 1.5, whole_rows: 1.5},
        [
            Arm("csv.writer", "floor", rows, delivering.csv_writer),
            ours(rows, "csv"),
            each("Lightning CSVLogger", values, rows),
            whole("Lightning CSVLogger", whole_rows, rows),
        ],
    )


def into_logs() -> Backend:
    """A line a row, to a `FileHandler`."""
    rows = 5000
    line = "logging.info, a value a line"
    return Backend(
        "logging",
        "Into standard logging, to a file",
        "`file.write` and `flush` of lines that are there already, a row a line",
        {line: 5.0},
        [
            Arm("file.write of ready lines", "floor", rows, delivering.ready_lines),
            ours(rows, "logging"),
            each("logging", line, rows),
            whole("logging", "logging.info, 20 values a line", rows),
        ],
    )


def into_tensorboard() -> Backend:
    """An event a row, or a value."""
    peers = {
        "SummaryWriter": "SummaryWriter.add_scalar",
        "tensorboardX": "tensorboardX.add_scalar",
        "Lightning TensorBoardLogger": "TensorBoardLogger.log_metrics, 20 values a call",
        "CLU": "CLU's write_scalars, 20 values a call",
    }
    return Backend(
        "tensorboard",
        "Into TensorBoard",
        "a bare loop that serializes events of 20 values and writes them with their checksums by "
        "google-crc32c",
        {peers["SummaryWriter"]: 30.0},
        [
            Arm("bare events", "floor", 5000, delivering.bare_events),
            ours(5000, "tensorboard"),
            *(whole(name, called, 500) for name, called in peers.items() if name in PEERS),
        ],
    )


def into_wandb() -> Backend:
    """Offline; a row of metricbus also has its step, epoch and time as columns."""
    rows = 600
    values, mapping = "Run.log, a value a call", "Run.log, 20 values a call"
    return Backend(
        "wandb",
        "Into W&B, offline",
        "a bare loop that serializes W&B's records of 20 values into a file, without W&B's own "
        "process. The sink's rows have three more columns each: step, epoch and time",
        {values: 10.0, mapping: 0.9},
        [
            Arm("bare records", "floor", rows, delivering.bare_records),
            ours(rows, "wandb?mode=offline"),
            each("wandb", values, rows),
            whole("wandb, a mapping a call", mapping, rows),
        ],
    )


def into_mlflow_file() -> Backend:
    """MLflow's client on a new SQLite database."""
    values = "MlflowClient.log_metric"

    def full(place: Path, rows: int) -> Opened:
        database = empty_database(place / DATABASE)
        return delivering.full_batches(place, f"sqlite:///{database}", rows)

    return Backend(
        "mlflow-sqlite",
        "Into MLflow, SQLite",
        FULL_BATCHES,
        {values: 25.0},
        [
            Arm("log_batch of 1,000", "floor", 500, full),
            ours(500, "mlflow"),
            each("mlflow, sqlite", values, 20),
            whole("mlflow, sqlite, log_batch", "MlflowClient.log_batch, 20 values a call", 100),
        ],
    )


def into_mlflow_server(server: str) -> Backend:
    """A server on this machine, with a SQLite database; each arm has an experiment there."""
    values = "MlflowClient.log_metric"

    def open_ours(place: Path, rows: int) -> Opened:
        sink = f"mlflow+{server}?experiment={place.name}"
        count = partial(reading.mlflow_values, server, place.name)
        return by_sink(journal(place, rows), sink, count)

    return Backend(
        "mlflow-server",
        "Into MLflow, by a server",
        FULL_BATCHES,
        {values: 15.0},
        [
            Arm(
                "log_batch of 1,000",
                "floor",
                250,
                lambda place, rows: delivering.full_batches(place, server, rows),
            ),
            Arm(OURS, "ours", 250, open_ours),
            Arm(
                values,
                "peer",
                5,
                lambda place, rows: value_by_value(mlflow_peer(place, server), rows),
            ),
            Arm(
                "MlflowClient.log_batch, 20 values a call",
                "peer",
                25,
                lambda place, rows: row_by_row(MlflowBatches(place, server), rows),
            ),
        ],
    )

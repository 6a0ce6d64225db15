"""Delivery rate to each backend: metricbus's sinks compared with the backends' own APIs.

metricbus delivers from an existing journal, as a consumer does. The measurement includes closing
the backend, but not opening it. The output of each arm is read back in every round.
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
QUICK_DIVISOR = 50  # divides the number of rows in a quick run
OURS = "metricbus"

TEXT = """\
Values per second, in rows of {values} values. metricbus reads the rows from an existing journal and
delivers them without the pauses of its consumer; the other arms generate them in a loop. The
measurement ends when the backend is closed and everything is written. It does not include opening
the backend. The floor is {floor}.\
"""

FULL_BATCHES = "`log_batch` with 1,000 metrics per call, the maximum that MLflow accepts"

Open = Callable[[Path, int], Opened]
"""Function that opens an arm, given a new folder and the number of rows."""


class Arm(NamedTuple):
    """One way to write a number of rows to a backend."""

    name: str
    role: Role
    rows: int
    open: Open


class Backend(NamedTuple):
    """Arms of one table.

    `limits` maps peers to the smallest accepted ratio of metricbus's rate to the peer's. The first
    of these peers is the baseline of the table.
    """

    id: str
    title: str
    floor: str
    limits: Mapping[str, float]
    arms: Sequence[Arm]


def measure(context: Context) -> list[Result]:
    """Measure each backend; MLflow has two results, for a local database and for a server.

    A quick run omits the server, which starts slowly.
    """
    backends = [
        csv_backend(),
        logging_backend(),
        tensorboard_backend(),
        wandb_backend(),
        mlflow_sqlite_backend(),
    ]
    with ExitStack() as exits:
        if not context.quick:
            server = exits.enter_context(mlflow_server(context.new_folder("server")))
            backends.append(mlflow_server_backend(server))
        return [measure_backend(context, backend) for backend in backends]


def measure_backend(context: Context, backend: Backend) -> Result:
    """Measure the rates of all arms in rounds of alternating order."""
    context.log(backend.title)
    rounds = context.pick(ROUNDS, 1)
    arms = {arm.name: partial(rate, context, arm) for arm in backend.arms}
    samples = interleaved(arms, rounds, warm_up=not context.quick)
    figures = [figure_of(context, arm, samples[arm.name]) for arm in backend.arms]
    named = {figure.name: figure for figure in figures}
    return Result(
        id=f"delivery-{backend.id}",
        title=backend.title,
        text=TEXT.format(values=len(NAMES), floor=backend.floor),
        unit="values/s",
        figures=figures,
        targets=[
            Target(
                f"{backend.title}: metricbus, relative to {name}",
                ratio(named[OURS], named[name]),
                limit,
                at_most=False,
            )
            for name, limit in backend.limits.items()
        ],
        baseline=next(iter(backend.limits)),
        better="higher",
    )


def rate(context: Context, arm: Arm, number: int) -> float:
    """Measure one round in values per second; raise unless all values are read back."""
    rows = rows_of(context, arm) if number >= 0 else WARM_UP_ROWS
    folder = context.new_folder("delivery")
    with lines_in(folder):
        opened = arm.open(folder, rows)
        gc.collect()
        start = time.perf_counter()
        opened.write()
        seconds = time.perf_counter() - start
    values = rows * len(NAMES)
    complete(arm.name, opened.read_back, values)
    return values / seconds


def rows_of(context: Context, arm: Arm) -> int:
    """Return the number of rows that an arm writes in each round."""
    return context.pick(arm.rows, max(1, arm.rows // QUICK_DIVISOR))


def figure_of(context: Context, arm: Arm, samples: list[float]) -> Figure:
    """Return the figure of an arm, whose values have all been read back by now."""
    values = rows_of(context, arm) * len(NAMES)
    return Figure(arm.name, samples, arm.role, read_back=f"{values:,} of {values:,}")


def ours(rows: int, sink: str) -> Arm:
    """Return the arm of a metricbus sink that writes local files."""
    kind = sink.partition("?")[0]

    def open_sink(folder: Path, rows: int) -> Opened:
        if kind == "mlflow":
            empty_database(folder / DATABASE)
        return by_sink(journal(folder, rows), sink, partial(VALUES[kind], folder))

    return Arm(OURS, "ours", rows, open_sink)


def by_value(peer: str, name: str, rows: int) -> Arm:
    """Return the arm of a peer that is called once per value."""
    return Arm(name, "peer", rows, lambda to, rows: value_by_value(PEERS[peer](to), rows))


def by_row(peer: str, name: str, rows: int) -> Arm:
    """Return the arm of a peer that is called once per row."""
    return Arm(name, "peer", rows, lambda to, rows: row_by_row(PEERS[peer](to), rows))


def csv_backend() -> Backend:
    """Return the arms for CSV: one line per value; Lightning's file has one column per name."""
    rows = 5000
    values, whole_rows = "CSVLogger, one value per call", "CSVLogger, 20 values per call"
    return Backend(
        "csv",
        "Delivery to CSV",
        "`csv.writer` with the same lines in one call of `writerows`",
        {values: 1.5, whole_rows: 1.5},
        [
            Arm("csv.writer", "floor", rows, delivering.csv_writer),
            ours(rows, "csv"),
            by_value("Lightning CSVLogger", values, rows),
            by_row("Lightning CSVLogger", whole_rows, rows),
        ],
    )


def logging_backend() -> Backend:
    """Return the arms for standard logging: one line per row, written by a `FileHandler`."""
    rows = 5000
    line = "logging.info, one value per line"
    return Backend(
        "logging",
        "Delivery to standard logging (file)",
        "`file.write` and `flush` of prepared lines, one line per row",
        {line: 5.0},
        [
            Arm("file.write of prepared lines", "floor", rows, delivering.ready_lines),
            ours(rows, "logging"),
            by_value("logging", line, rows),
            by_row("logging", "logging.info, 20 values per line", rows),
        ],
    )


def tensorboard_backend() -> Backend:
    """Return the arms for TensorBoard: one event per row or per value."""
    peers = {
        "SummaryWriter": "SummaryWriter.add_scalar",
        "tensorboardX": "tensorboardX.add_scalar",
        "Lightning TensorBoardLogger": "TensorBoardLogger.log_metrics, 20 values per call",
        "CLU": "CLU write_scalars, 20 values per call",
    }
    return Backend(
        "tensorboard",
        "Delivery to TensorBoard",
        "a bare loop that serializes events of 20 values and writes them with checksums from "
        "google-crc32c",
        {peers["SummaryWriter"]: 30.0},
        [
            Arm("bare event writer", "floor", 5000, delivering.bare_events),
            ours(5000, "tensorboard"),
            *(by_row(peer, name, 500) for peer, name in peers.items() if peer in PEERS),
        ],
    )


def wandb_backend() -> Backend:
    """Return the arms for W&B, offline; metricbus also writes step, epoch and time columns."""
    rows = 600
    values, mapping = "Run.log, one value per call", "Run.log, 20 values per call"
    return Backend(
        "wandb",
        "Delivery to W&B, offline",
        "a bare loop that serializes W&B records of 20 values to a file, without W&B's process. "
        "Each row of the metricbus sink has three more columns: step, epoch and time",
        {values: 10.0, mapping: 0.9},
        [
            Arm("bare record writer", "floor", rows, delivering.bare_records),
            ours(rows, "wandb?mode=offline"),
            by_value("wandb", values, rows),
            by_row("wandb, one mapping per call", mapping, rows),
        ],
    )


def mlflow_sqlite_backend() -> Backend:
    """Return the arms for MLflow with a new SQLite database."""
    values = "MlflowClient.log_metric"

    def full(folder: Path, rows: int) -> Opened:
        database = empty_database(folder / DATABASE)
        return delivering.full_batches(folder, f"sqlite:///{database}", rows)

    return Backend(
        "mlflow-sqlite",
        "Delivery to MLflow, SQLite",
        FULL_BATCHES,
        {values: 25.0},
        [
            Arm("log_batch of 1,000", "floor", 500, full),
            ours(500, "mlflow"),
            by_value("mlflow, sqlite", values, 20),
            by_row("mlflow, sqlite, log_batch", "MlflowClient.log_batch, 20 values per call", 100),
        ],
    )


def mlflow_server_backend(server: str) -> Backend:
    """Return the arms for a local MLflow server with a SQLite database.

    Each arm has an experiment of its own.
    """
    values = "MlflowClient.log_metric"

    def open_ours(folder: Path, rows: int) -> Opened:
        sink = f"mlflow+{server}?experiment={folder.name}"
        count = partial(reading.mlflow_values, server, folder.name)
        return by_sink(journal(folder, rows), sink, count)

    return Backend(
        "mlflow-server",
        "Delivery to MLflow, server",
        FULL_BATCHES,
        {values: 15.0},
        [
            Arm(
                "log_batch of 1,000",
                "floor",
                250,
                lambda folder, rows: delivering.full_batches(folder, server, rows),
            ),
            Arm(OURS, "ours", 250, open_ours),
            Arm(
                values,
                "peer",
                5,
                lambda folder, rows: value_by_value(mlflow_peer(folder, server), rows),
            ),
            Arm(
                "MlflowClient.log_batch, 20 values per call",
                "peer",
                25,
                lambda folder, rows: row_by_row(MlflowBatches(folder, server), rows),
            ),
        ],
    )

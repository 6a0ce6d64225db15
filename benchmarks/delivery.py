"""What delivery costs, with all five sinks. Run it with `make bench-delivery`.

Two tables, each measured in one run with its rows interleaved, as medians over rounds:

* values a second into each backend, by its sink from a journal that is there already, and by the
  backend's own API called in the ways that people call it. Each arm ends when its backend has
  closed; what opening costs is left out;
* how much longer a training loop takes that logs 20 scalars a step to all five, by the bus with its
  sinks in a process of their own or in threads, and by the backends' own calls in the loop.

Absolute numbers mean nothing beyond the machine; the ratios are what to read.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import wandb
from lightning.pytorch.loggers import CSVLogger
from mlflow import MlflowClient
from mlflow.entities import Metric
from torch.utils.tensorboard import SummaryWriter
from training import make_training

from metricbus import MetricBus
from metricbus.config import Hosting
from metricbus.feed import Feed
from metricbus.run import RunFolder
from metricbus.specs import spec_of
from metricbus.urls import parse_sink

NAMES = [f"train/metric{i}" for i in range(20)]
STEPS = 1000
ROUNDS = 5
LOOP_ROUNDS = 11
LOOP_SECONDS = 2.0
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Arm(NamedTuple):
    """One way to bring values into a backend: `write` takes some steps; returns values a second."""

    backend: str
    name: str
    write: Callable[[Path], float]


def main() -> None:
    os.environ.update(QUIET)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name, mlflow_server(Path(name) / "server") as server:
        folder = Path(name)
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        print_throughput(measure_throughput(arms(folder, server), folder))
        for milliseconds in (3.5, 22.0):
            print_loop(milliseconds, measure_loop(folder, milliseconds))


def arms(folder: Path, server: str) -> list[Arm]:
    with MetricBus(id="journal", sinks="", dir=folder) as bus:
        for step in range(STEPS):
            bus.log(dict.fromkeys(NAMES, step / 7), step=step)
    database = f"sqlite:///{folder}/mlflow.db"
    return [
        Arm("csv", "metricbus", lambda to: deliver(folder / "journal", f"csv:{to}")),
        Arm("csv", "csv.writer, a row a value", by_csv_writer),
        Arm("csv", "Lightning's CSVLogger, a value a call", by_csv_logger),
        Arm("logging", "metricbus", lambda to: deliver_to_log(folder / "journal", to)),
        Arm("logging", "logging.info, a value a line", by_logging),
        Arm(
            "tensorboard", "metricbus", lambda to: deliver(folder / "journal", f"tensorboard:{to}")
        ),
        Arm("tensorboard", "SummaryWriter.add_scalar", by_summary_writer),
        Arm("wandb", "metricbus", lambda to: deliver(folder / "journal", "wandb?mode=offline")),
        Arm("wandb", "Run.log, a value a call", lambda to: by_wandb(to, together=False)),
        Arm("wandb", "Run.log, 20 values a call", lambda to: by_wandb(to, together=True)),
        Arm(
            "mlflow, sqlite",
            "metricbus",
            lambda to: deliver(folder / "journal", f"mlflow+{database}?experiment={to.name}"),
        ),
        Arm("mlflow, sqlite", "log_metric", lambda to: by_log_metric(to, database)),
        Arm(
            "mlflow, server",
            "metricbus",
            lambda to: deliver(folder / "journal", f"mlflow+{server}?experiment={to.name}"),
        ),
        Arm("mlflow, server", "log_metric", lambda to: by_log_metric(to, server)),
    ]


def deliver(run: Path, url: str) -> float:
    """What a consumer does, without its pauses."""
    folder = RunFolder(run)
    spec = spec_of(parse_sink(url))
    for old in folder.offsets.glob("*"):
        old.unlink()
    for old in folder.path.glob("wandb/*run-*/*.wandb"):
        old.unlink()
    spec.sink.open(folder.load(), folder.path, {})
    feed = Feed(folder, spec)
    given = 0
    start = time.perf_counter()
    while (batch := feed.next(ended=False)) is not None:
        spec.sink.write(batch.records)
        given += len(batch.records)
        feed.done(batch, dict(spec.sink.flush()), given)
        feed.ledger.settle(spec.sink.settled())
    spec.sink.close("finished")
    seconds = time.perf_counter() - start
    assert feed.progress.delivered == STEPS * len(NAMES)
    return feed.progress.delivered / seconds


def deliver_to_log(run: Path, to: Path) -> float:
    handler = file_handler(to)
    logger = logging.getLogger("metricbus")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        return deliver(run, "logging")
    finally:
        logger.removeHandler(handler)
        handler.close()


def file_handler(folder: Path) -> logging.Handler:
    folder.mkdir(parents=True)
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    return handler


def timed(steps: int, log: Callable[[int], object], close: Callable[[], object]) -> float:
    """Values a second, at `len(NAMES)` values a step."""
    start = time.perf_counter()
    for step in range(steps):
        log(step)
    close()
    return steps * len(NAMES) / (time.perf_counter() - start)


def by_csv_writer(to: Path) -> float:
    to.mkdir(parents=True)
    with open(to / "metrics.csv", "w", newline="") as file:
        write = csv.writer(file).writerow
        return timed(
            STEPS,
            lambda step: [write((step, 0, "1700000000.5", name, step / 7)) for name in NAMES],
            file.flush,
        )


def by_csv_logger(to: Path) -> float:
    logger = CSVLogger(to, flush_logs_every_n_steps=10**9)
    return timed(
        STEPS,
        lambda step: [logger.log_metrics({name: step / 7}, step) for name in NAMES],
        logger.save,
    )


def by_logging(to: Path) -> float:
    logger = logging.getLogger("benchmark")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = file_handler(to)
    logger.addHandler(handler)
    info: Callable[..., object] = logger.info
    try:
        return timed(
            STEPS,
            lambda step: [info("step %d %s=%g", step, name, step / 7) for name in NAMES],
            handler.close,
        )
    finally:
        logger.removeHandler(handler)


def by_summary_writer(to: Path) -> float:
    writer = SummaryWriter(to)
    write: Callable[[str, float, int], object] = writer.add_scalar
    return timed(
        STEPS // 4,
        lambda step: [write(name, step / 7, step) for name in NAMES],
        writer.close,
    )


def by_wandb(to: Path, *, together: bool) -> float:
    run = begin_wandb(to)
    if together:
        return timed(STEPS // 2, lambda step: run.log(dict.fromkeys(NAMES, step / 7)), run.finish)
    return timed(
        STEPS // 10,
        lambda step: [run.log({name: step / 7}) for name in NAMES],
        run.finish,
    )


def begin_wandb(to: Path) -> wandb.Run:
    to.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(console="off", silent=True)
    return wandb.init(
        mode="offline", project="bench", dir=to, settings=settings, reinit="create_new"
    )


def by_log_metric(to: Path, uri: str) -> float:
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment(f"{to.name}-peer")).info.run_id
    return timed(
        20,
        lambda step: [client.log_metric(run, name, step / 7, step=step) for name in NAMES],
        lambda: client.set_terminated(run),
    )


def measure_throughput(arms: list[Arm], folder: Path) -> dict[tuple[str, str], float]:
    seen: dict[tuple[str, str], list[float]] = {(arm.backend, arm.name): [] for arm in arms}
    for round_number in range(ROUNDS):
        for i, arm in enumerate(arms):
            place = folder / f"arm{i}-{round_number}"
            seen[arm.backend, arm.name].append(arm.write(place))
    return {key: statistics.median(values) for key, values in seen.items()}


def measure_loop(folder: Path, milliseconds: float) -> dict[str, list[float]]:
    """Milliseconds a step in each round, by what logs in the loop."""
    train_step = make_training(milliseconds)
    place = folder / f"loop-{milliseconds}"
    sinks = "logging,csv,tensorboard,wandb?mode=offline,mlflow"
    logger = logging.getLogger("metricbus")
    logger.addHandler(file_handler(place / "log"))
    logger.propagate = False
    hosts: dict[str, Hosting] = {
        "MetricBus to all five": "auto",
        "the same, delivery=thread": "thread",
    }
    buses = {way: MetricBus(sinks=sinks, dir=place, delivery=at) for way, at in hosts.items()}
    ways: dict[str, Callable[[int, float], None]] = {"nothing": lambda step, loss: None}
    for way, bus in buses.items():
        bus.log("ready", 1.0, step=0)
        bus.flush(60)  # everything is imported and open
        ways[way] = by_bus(bus)
    ways["the five backends' own calls"] = by_hand(place / "by-hand")
    steps = int(LOOP_SECONDS * 1e3 / milliseconds)
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(LOOP_ROUNDS):
        there, back = list(ways.items()), list(reversed(ways.items()))
        for name, log in back if round_number % 2 else there:
            start = time.perf_counter()
            for i in range(steps):
                log(1 + round_number * steps + i, train_step())
            seen[name].append((time.perf_counter() - start) / steps * 1e3)
            if name in buses:
                buses[name].flush(60)  # so that its delivery takes nothing from the next one
    for bus in buses.values():
        assert bus.close().complete, str(bus.stats())
    logger.handlers.clear()
    return seen


def by_bus(bus: MetricBus) -> Callable[[int, float], None]:
    def log(step: int, loss: float) -> None:
        for name in NAMES:
            bus.log(name, loss, step=step)

    return log


def by_hand(to: Path) -> Callable[[int, float], None]:
    """Each backend as its own documentation has it, 20 values together where that is possible."""
    csv_logger = CSVLogger(to / "csv")
    writer = SummaryWriter(to / "tensorboard")
    run = begin_wandb(to)
    logger = logging.getLogger("by-hand")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(file_handler(to / "log"))
    client = MlflowClient(f"sqlite:///{to}/mlflow.db")
    run_id = client.create_run(client.create_experiment("by-hand")).info.run_id

    def log(step: int, loss: float) -> None:
        values = dict.fromkeys(NAMES, loss)
        csv_logger.log_metrics(dict(values), step)
        csv_logger.save()
        logger.info("step %d %s", step, values)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        run.log(values)
        now = int(time.time() * 1e3)
        client.log_batch(run_id, [Metric(name, loss, now, step) for name in NAMES])

    return log


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def print_throughput(rates: dict[tuple[str, str], float]) -> None:
    print(f"{'values a second into':16} {'by':38} {'values/s':>10} {'metricbus is':>13}")
    ours: dict[str, float] = {}
    for (backend, name), rate in rates.items():
        ours.setdefault(backend, rate)
        print(f"{backend:16} {name:38} {rate:10,.0f} {ours[backend] / rate:12.1f}x")


def print_loop(milliseconds: float, times: dict[str, list[float]]) -> None:
    """Each way beside doing nothing in the same round: the median, and the middle half."""
    head = f"a training step of {milliseconds} ms with 20 scalars"
    print(f"\n{head:44} {'ms':>8} {'slowdown':>9} {'middle half':>14}")
    for name, took in times.items():
        ratios = [one / alone for one, alone in zip(took, times["nothing"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:44} {statistics.median(took):8.3f} {middle:9.2f} {low:6.2f} to {high:.2f}")


if __name__ == "__main__":
    main()

"""Kills training and delivery processes at random times, and checks for missing values.

Each run is a separate process that logs from several threads. It stores the time of each call in
shared memory, which survives the kill. All randomness is derived from the run's seed.
"""

from __future__ import annotations

import csv
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import metricbus
from metricbus._common.records import Header, ScalarRow
from metricbus._journal.crash_recovery import partial_rows
from metricbus._journal.segment_reader import JournalReader
from tests.helpers.limits import HANG_SECS, scaled

THREADS = 3
MAX_VALUES = 100_000  # per thread
GRACE_SECS = scaled(1.0)
CHECKPOINT_SECS = 0.3

_TRAINING = f"""
import mmap, sys, threading, time
import numpy as np
from metricbus._ingest import collector
from metricbus import MetricBus
collector._CHECKPOINT_EVERY = {CHECKPOINT_SECS}
run, sinks, hosting, pause = sys.argv[1:]
with open("times", "r+b") as file:
    shared = mmap.mmap(file.fileno(), 0)
times = np.frombuffer(shared, dtype=np.float64).reshape({THREADS}, {MAX_VALUES})
bus = MetricBus(id=run, dir=".", sinks=sinks, flush_secs=0.2, delivery=hosting)
bus.define("open/*", every=10**9, reduce="count")

def log(thread):
    own_times = times[thread]
    for number in range({MAX_VALUES}):
        bus.log({{f"x/{{thread}}": float(number), f"open/{{thread}}": 1.0}}, step=number)
        own_times[number] = time.time()
        if number % 20 == 0:
            time.sleep(float(pause))

for thread in range({THREADS}):
    threading.Thread(target=log, args=(thread,), daemon=True).start()
print("started", flush=True)
time.sleep(100)
"""


class KilledRun(NamedTuple):
    """A killed run: its folder, the time of the kill, and the call times of each thread."""

    folder: Path
    killed_at: float
    times: list[np.ndarray[Any, np.dtype[np.float64]]]


def run_and_kill(
    root: Path, seed: int, sinks: str, *, longest: float, hosting: str, pause: float
) -> KilledRun:
    """Run a training in `root` and kill it. With the process host, also kill its delivery.

    Each thread pauses after every 20 calls. The run is killed after up to `longest` seconds.
    """
    rng = random.Random(seed)
    folder = root / f"run{seed}"
    root.mkdir(parents=True, exist_ok=True)
    (root / "times").write_bytes(bytes(8 * THREADS * MAX_VALUES))
    with open(root / "log.txt", "wb") as log:
        training = subprocess.Popen(
            [sys.executable, "-c", _TRAINING, folder.name, sinks, hosting, str(pause)],
            cwd=root,
            env={key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert training.stdout is not None
    with training.stdout as output:
        assert output.readline() == b"started\n", (root / "log.txt").read_text()
    end = time.time() + rng.uniform(0, longest)
    while time.time() < end:
        time.sleep(min(max(0.0, end - time.time()), rng.uniform(0.1, 0.8)))
        if hosting == "process" and rng.random() < 0.3:
            kill_delivery(folder)
    killed_at = time.time()
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    if hosting == "process" and rng.random() < 0.5:
        time.sleep(rng.uniform(0, 0.5))
        kill_delivery(folder)
    with open(root / "times", "rb") as file:
        shared = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        columns = np.frombuffer(shared, dtype=np.float64).reshape(THREADS, MAX_VALUES).copy()
    return KilledRun(folder, killed_at, [column[column > 0] for column in columns])


def kill_delivery(folder: Path) -> None:
    """Kill the delivery process, if there is one."""
    try:
        status = json.loads((folder / "delivery" / "status-1.json").read_bytes())
        os.kill(status["process"]["pid"], signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError, json.JSONDecodeError):
        pass


def check_journal(run: KilledRun) -> list[ScalarRow]:
    """Check that the journal has every value older than `GRACE_SECS`. Return all of its records."""
    reader = JournalReader(run.folder / "journal")
    rows = list(reader.read())
    assert reader.damaged == 0
    assert isinstance(rows[0].record, Header)
    records = [row.record for row in rows if isinstance(row.record, ScalarRow)]
    values: dict[str, list[float]] = {f"x/{thread}": [] for thread in range(THREADS)}
    for record in records:
        for name, value in record.values.items():
            values[name].append(value)
    partial = [record for _, record in partial_rows(rows)]
    counted = {name: value for record in partial for name, value in record.values.items()}
    for thread, times in enumerate(run.times):
        logged = values[f"x/{thread}"]
        assert logged == list(range(len(logged))), "a value is missing or duplicated"
        old = int((times < run.killed_at - GRACE_SECS).sum())
        assert len(logged) >= old, f"{old - len(logged)} values older than {GRACE_SECS} s are lost"
        older = int((times < run.killed_at - GRACE_SECS - CHECKPOINT_SECS).sum())
        assert counted.get(f"open/{thread}", 0) >= older, "a partial aggregate is lost"
    return records + partial


def expected_points(
    records: Sequence[ScalarRow], *, marked: bool
) -> Counter[tuple[str, int, float]]:
    """Return the name, step and value of each point. `marked` adds a suffix to partial values."""
    return Counter(
        (f"{name}_partial" if record.partial and marked else name, record.step, float(value))
        for record in records
        for name, value in record.values.items()
    )


def csv_points(folder: Path) -> Counter[tuple[str, int, float]]:
    """Return the points in the CSV file."""
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return Counter((row["name"], int(row["step"]), float(row["value"])) for row in rows)


def tensorboard_points(folder: Path) -> Counter[tuple[str, int, float]]:
    """Return the points in the event files, read by TensorBoard."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return Counter(
        (value.tag, event.step, value.tensor.float_val[0])
        for file in (folder / "tensorboard").rglob("events*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def mlflow_points(database: Path) -> Counter[tuple[str, int, float]]:
    """Return the points in MLflow's database, read by its client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("metricbus")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return Counter(
        (key, point.step, point.value)
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )


def wandb_points(folder: Path) -> Counter[tuple[str, int, float]]:
    """Return the points in W&B's files."""
    from tests.helpers.wandb_reader import wandb_rows

    return Counter(
        (name, row["metricbus/step"], float(value))
        for row in wandb_rows(folder)
        for name, value in row.items()
        if name.startswith(("x/", "open/"))
    )


def deliver_pending(folder: Path, sinks: str) -> None:
    """Deliver what is pending, after any other process has stopped delivering."""
    counts = metricbus.deliver(folder, sinks, timeout=HANG_SECS)
    for name, sink in counts.items():
        assert (sink.pending, sink.rejected) == (0, 0), f"{name}: {sink}"

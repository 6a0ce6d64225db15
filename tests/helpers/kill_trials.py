"""Kills a training, and its delivery, at random instants, and looks for what is missing.

Each run is a process of its own that logs from several threads. It writes down in shared memory,
which survives its death, when it logged what. All chance comes from the run's seed.
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
from metricbus._common.records import Header, Scalars
from metricbus._journal.recovery import partial_rows
from metricbus._journal.segment_reader import JournalReader

THREADS = 3
MOST = 100_000  # values a thread
GRACE_SECS = 1.0
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
times = np.frombuffer(shared, dtype=np.float64).reshape({THREADS}, {MOST})
bus = MetricBus(id=run, dir=".", sinks=sinks, flush_secs=0.2, delivery=hosting)
bus.define("open/*", every=10**9, reduce="count")

def log(thread):
    mine = times[thread]
    for number in range({MOST}):
        bus.log({{f"x/{{thread}}": float(number), f"open/{{thread}}": 1.0}}, step=number)
        mine[number] = time.time()
        if number % 20 == 0:
            time.sleep(float(pause))

for thread in range({THREADS}):
    threading.Thread(target=log, args=(thread,), daemon=True).start()
print("begun", flush=True)
time.sleep(100)
"""


class Killed(NamedTuple):
    """A run that is dead: where, when, and what it had logged by then, by thread."""

    folder: Path
    at: float
    times: list[np.ndarray[Any, np.dtype[np.float64]]]


def run_and_kill(
    place: Path, seed: int, sinks: str, *, longest: float, hosting: str, pause: float
) -> Killed:
    """Trains in `place`, and kills training and, under `process`, delivery too.

    Each thread logs 20 times between two pauses, for `longest` seconds at most.
    """
    chance = random.Random(seed)
    folder = place / f"run{seed}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "times").write_bytes(bytes(8 * THREADS * MOST))
    with open(place / "log.txt", "wb") as log:
        training = subprocess.Popen(
            [sys.executable, "-c", _TRAINING, folder.name, sinks, hosting, str(pause)],
            cwd=place,
            env={key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert training.stdout is not None
    with training.stdout as said:
        assert said.readline() == b"begun\n", (place / "log.txt").read_text()
    end = time.time() + chance.uniform(0, longest)
    while time.time() < end:
        time.sleep(min(max(0.0, end - time.time()), chance.uniform(0.1, 0.8)))
        if hosting == "process" and chance.random() < 0.3:
            kill_delivery(folder)
    at = time.time()
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    if hosting == "process" and chance.random() < 0.5:
        time.sleep(chance.uniform(0, 0.5))
        kill_delivery(folder)
    with open(place / "times", "rb") as file:
        shared = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        columns = np.frombuffer(shared, dtype=np.float64).reshape(THREADS, MOST).copy()
    return Killed(folder, at, [column[column > 0] for column in columns])


def kill_delivery(folder: Path) -> None:
    """Kills the delivery process, if there is one."""
    try:
        status = json.loads((folder / "delivery" / "status-1.json").read_bytes())
        os.kill(status["process"]["pid"], signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError, json.JSONDecodeError):
        pass


def check_journal(run: Killed) -> list[Scalars]:
    """The journal's records, partial ones too; none is missing that is older than the grace."""
    reader = JournalReader(run.folder / "journal")
    rows = list(reader.read())
    assert reader.damaged == 0
    assert isinstance(rows[0].record, Header)
    records = [row.record for row in rows if isinstance(row.record, Scalars)]
    values: dict[str, list[float]] = {f"x/{thread}": [] for thread in range(THREADS)}
    for record in records:
        for name, value in record.values.items():
            values[name].append(value)
    partial = [record for _, record in partial_rows(rows)]
    counted = {name: value for record in partial for name, value in record.values.items()}
    for thread, times in enumerate(run.times):
        found = values[f"x/{thread}"]
        assert found == list(range(len(found))), "a value is missing in the midst, or doubled"
        old = int((times < run.at - GRACE_SECS).sum())
        assert len(found) >= old, f"{old - len(found)} values older than {GRACE_SECS} s are lost"
        older = int((times < run.at - GRACE_SECS - CHECKPOINT_SECS).sum())
        assert counted.get(f"open/{thread}", 0) >= older, "what was open is lost"
    return records + partial


def expected(records: Sequence[Scalars], *, marked: bool) -> Counter[tuple[str, int, float]]:
    """What a sink must have: name, step and value of each; partial ones by a name of their own."""
    return Counter(
        (f"{name}_partial" if record.partial and marked else name, record.step, float(value))
        for record in records
        for name, value in record.values.items()
    )


def in_csv(folder: Path) -> Counter[tuple[str, int, float]]:
    """What the CSV file has."""
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return Counter((row["name"], int(row["step"]), float(row["value"])) for row in rows)


def in_tensorboard(folder: Path) -> Counter[tuple[str, int, float]]:
    """What the event files have, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return Counter(
        (value.tag, event.step, value.tensor.float_val[0])
        for file in (folder / "tensorboard").rglob("events*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def in_mlflow(database: Path) -> Counter[tuple[str, int, float]]:
    """What MLflow has, by its own client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    found = client.get_experiment_by_name("metricbus")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return Counter(
        (key, point.step, point.value)
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )


def in_wandb(folder: Path) -> Counter[tuple[str, int, float]]:
    """What W&B's files have."""
    from tests.helpers.wandb_reader import wandb_rows

    return Counter(
        (name, row["metricbus/step"], float(value))
        for row in wandb_rows(folder)
        for name, value in row.items()
        if name.startswith(("x/", "open/"))
    )


def deliver_the_rest(folder: Path, sinks: str) -> None:
    """What somebody does afterwards: delivers, as soon as nobody else does."""
    counts = metricbus.deliver(folder, sinks, timeout=60)
    for name, sink in counts.items():
        assert (sink.pending, sink.rejected) == (0, 0), f"{name}: {sink}"

"""What a logged value takes in all: processor time of all processes together, and bytes on disk.

Each arm runs in processes of its own (`benchmarks.workloads.metered`), once with rows and once with
none; the difference is what the rows took, without imports, opening and closing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.framework.harness import Context, Figure, Result, Role, interleaved
from benchmarks.peers import APART, MISSING, mlflow_server, quiet
from benchmarks.peers.services import make_template
from benchmarks.workloads.metered import ANSWER, NAMES, OURS
from benchmarks.workloads.ours import ALL, own_files, values_by_sink
from benchmarks.workloads.reading import complete, mlflow_values

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN = 300.0
JOURNAL = "metricbus, journal alone"
SERVER = "mlflow, server"

CPU_TEXT = """\
Twenty values a step, user and system time of all processes together: the training's, metricbus's
delivery, W&B's own, and MLflow's server. Each arm runs twice a round, with rows and without, side
by side (one after the other where there is a server); the difference is divided by the number of
values, so that imports, opening and closing are left out. It is only as good as two starts are
alike, some tenths of a second over all values. The kernel's own account at the end of each process
is taken, of every descendant; nothing is sampled but the server, which goes on (in steps of 10 ms).
Peers log a row at once where they can.
"""
BYTES_TEXT = """\
The same runs: the lengths of all files, less those of the run without rows, for each value. With
metricbus, `journal` is all that it writes for itself, and a sink's bytes are those of its backend.
With MLflow, that has a file of the last 50 ms, which in so short a run is much of it.
"""


class Way(NamedTuple):
    """An arm: what it is called here, its name for the meter, and how many rows it logs."""

    name: str
    arm: str
    rows: int
    role: Role = "peer"
    quick: bool = False  # whether a quick run has it


WAYS = [
    Way(JOURNAL, OURS, 10_000, "ours", quick=True),
    Way("metricbus to logging", f"{OURS}logging", 10_000, "ours"),
    Way("metricbus to csv", f"{OURS}csv", 10_000, "ours", quick=True),
    Way("metricbus to tensorboard", f"{OURS}tensorboard", 10_000, "ours"),
    Way("metricbus to wandb", f"{OURS}wandb?mode=offline", 4_000, "ours"),
    Way("metricbus to mlflow, sqlite", f"{OURS}mlflow", 1_000, "ours"),
    Way("metricbus to all five", f"{OURS}{ALL}", 1_000, "ours"),
    Way("logging.info", "logging", 10_000, quick=True),
    Way("Lightning CSVLogger", "Lightning CSVLogger", 10_000),
    Way("SummaryWriter", "SummaryWriter", 1_500),
    Way("wandb, a mapping a call", "wandb, a mapping a call", 4_000),
    Way("mlflow log_batch, sqlite", "mlflow, sqlite, log_batch", 500),
    Way("mlflow log_metric, server", SERVER, 15),
    Way("trackio", "trackio", 4_000),
]


class Took(NamedTuple):
    """What one run took: processor seconds, and bytes by whose they are."""

    seconds: float
    bytes: Mapping[str, int]


class Meter:
    """Measures runs of the arms; keeps what each round took."""

    def __init__(self, context: Context, place: Path, uri: str) -> None:
        self._context = context
        self._place = place
        self._uri = uri
        self._numbers = itertools.count()
        self.bytes: dict[str, list[dict[str, float]]] = {}
        self.complete: dict[str, str] = {}

    def arm(self, way: Way) -> Callable[[int], float]:
        """Measures a round: microseconds of processor time for a value."""

        def measure(number: int) -> float:
            number_of_rows = max(way.rows // self._context.pick(1, 4), 5)
            folders = [self._place / f"{next(self._numbers)}" for _ in range(2)]
            runs = list(zip(folders, (number_of_rows, 0), strict=True))
            with ThreadPoolExecutor(1 if way.arm == SERVER else 2) as pool:  # it has one server
                with_rows, without = pool.map(lambda run: self._run(way, *run), runs)
            for folder, logged in runs:
                self._check(way, folder, logged)
            values = number_of_rows * len(NAMES)
            a_value = {
                whose: (count - without.bytes.get(whose, 0)) / values
                for whose, count in with_rows.bytes.items()
            }
            self.bytes.setdefault(way.name, []).append(a_value)
            return (with_rows.seconds - without.seconds) / values * 1e6

        return measure

    def _run(self, way: Way, folder: Path, number: int) -> Took:
        uri = self._uri if way.arm == SERVER else ""
        before = _server_took(uri, self._place)
        python = str(APART.get(way.arm, sys.executable))
        command = [python, "-W", "ignore", "-m", "benchmarks.workloads.metered", "METER"]
        _check_call([*command, way.arm, str(folder), str(number), uri], folder)
        told = json.loads(folder.with_suffix(ANSWER).read_bytes())
        after = _server_took(uri, self._place)
        took = {
            whose: count - before.bytes.get(whose, 0)
            for whose, count in {**_bytes(way, folder), **after.bytes}.items()
        }
        return Took(told["seconds"] + after.seconds - before.seconds, took)

    def _check(self, way: Way, folder: Path, number: int) -> None:
        """Reads back what has been logged, and raises if anything is missing."""
        if way.arm.startswith(OURS):
            counts = dict(values_by_sink(folder, way.arm.removeprefix(OURS)))
        elif way.arm == SERVER:
            counts = {way.name: mlflow_values(self._uri, str(folder))}
        else:
            counts = {way.name: json.loads(folder.with_suffix(ANSWER).read_bytes())["found"]}
        words = [complete(where, count, number * len(NAMES)) for where, count in counts.items()]
        if number:
            self.complete[way.name] = words[0]


def measure(context: Context) -> list[Result]:
    """All arms in one run: a table of processor time, and one of bytes."""
    quiet()
    ways = [way for way in WAYS if way.arm not in MISSING and (way.quick or not context.quick)]
    place = context.place("footprint")
    if any("mlflow" in way.arm for way in ways):
        make_template(place)
    with _server(place, ways) as uri:
        meter = Meter(context, place, uri)
        context.tell(f"{len(ways)} arms")
        seen = interleaved({way.name: meter.arm(way) for way in ways}, rounds=1)
    return [of_time(ways, seen, meter), of_bytes(ways, meter)]


def of_time(ways: Sequence[Way], seen: Mapping[str, list[float]], meter: Meter) -> Result:
    """Processor time."""
    figures = [
        Figure(way.name, seen[way.name], way.role, complete=meter.complete[way.name])
        for way in ways
    ]
    title = "Processor time for each value, all processes together"
    return Result("footprint-time", title, CPU_TEXT, "µs", figures, beside=JOURNAL)


def of_bytes(ways: Sequence[Way], meter: Meter) -> Result:
    """Bytes, by whose they are."""
    figures = [
        Figure(
            f"{way.name}: {whose}" if len(meter.bytes[way.name][0]) > 1 else way.name,
            [taken[whose] for taken in meter.bytes[way.name]],
            way.role,
            complete=meter.complete[way.name],
        )
        for way in ways
        for whose in meter.bytes[way.name][0]
    ]
    return Result("footprint-bytes", "Bytes on disk for each value", BYTES_TEXT, "bytes", figures)


def _bytes(way: Way, run: Path) -> dict[str, int]:
    """The lengths of the run's files; with metricbus, the sinks' own apart."""
    every = _length(file for file in run.rglob("*") if file.is_file())
    if not way.arm.startswith(OURS):
        return {} if way.arm == SERVER else {"all": every}
    sinks = [sink for sink in way.arm.removeprefix(OURS).split(",") if sink]
    own = {sink.partition("?")[0]: _length(own_files(run, sink)) for sink in sinks}
    return {"journal": every - sum(own.values()), **own}


def _length(files: Iterator[Path] | Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


@contextlib.contextmanager
def _server(place: Path, ways: Sequence[Way]) -> Iterator[str]:
    if any(way.arm == SERVER for way in ways):
        with mlflow_server(place / "server") as uri:
            yield uri
    else:
        yield ""


def _server_took(uri: str, place: Path) -> Took:
    """What the server has taken so far: the processes that this one has started and still run."""
    if not uri:
        return Took(0.0, {})
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])  # and of the children it has waited for
    return Took(seconds, {"all": _length(place.glob("server/mlflow.db*"))})


def _check_call(command: Sequence[str], folder: Path) -> None:
    said = folder.with_suffix(".said.txt")
    with open(said, "wb") as log:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=ENDS_WITHIN,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{command[-4]} failed:\n{said.read_text(errors='replace')[-3000:]}")

"""Total cost of a logged value: CPU time of all processes, and bytes on disk.

Each arm runs in new processes (`benchmarks.workloads.metered`), once with rows and once without.
The difference is the cost of the rows, without imports, opening and closing.
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
from benchmarks.peers import MISSING, SEPARATE_PEERS, mlflow_server, quiet
from benchmarks.peers.services import make_template
from benchmarks.workloads.metered import ANSWER, NAMES, OURS
from benchmarks.workloads.ours import ALL, own_files, values_by_sink
from benchmarks.workloads.reading import complete, mlflow_values

ROOT = Path(__file__).resolve().parents[2]
RUN_TIMEOUT = 300.0  # seconds
JOURNAL = "metricbus, journal only"
SERVER = "mlflow, server"

CPU_TEXT = """\
User and system time of all processes, with 20 values per step: the training process, metricbus's
delivery process, W&B's process, and the MLflow server. Each arm runs twice per round, with rows and
without, at the same time (one after the other if there is a server). The difference is divided by
the number of values, which excludes imports, opening and closing. Its accuracy is limited by the
variation between two starts, which is some tenths of a second in total. The kernel reports the CPU
time of each process and its descendants when it exits. Only the server, which keeps running, is
sampled (with a resolution of 10 ms). Peers log a row in one call if they support it.
"""
BYTES_TEXT = """\
The same runs: the size of all files, minus their size in the run without rows, per value. For
metricbus, `journal` includes everything that metricbus writes for itself; the other figures are the
files of the backends. With MLflow, `journal` includes a file with the last 50 ms, which is a large
part in such a short run.
"""


class ArmSpec(NamedTuple):
    """An arm: its name in the results, its key in the worker, and the number of rows it logs."""

    name: str
    key: str
    rows: int
    role: Role = "peer"
    quick: bool = False  # whether quick runs include it


ARMS = [
    ArmSpec(JOURNAL, OURS, 10_000, "ours", quick=True),
    ArmSpec("metricbus to logging", f"{OURS}logging", 10_000, "ours"),
    ArmSpec("metricbus to csv", f"{OURS}csv", 10_000, "ours", quick=True),
    ArmSpec("metricbus to tensorboard", f"{OURS}tensorboard", 10_000, "ours"),
    ArmSpec("metricbus to wandb", f"{OURS}wandb?mode=offline", 4_000, "ours"),
    ArmSpec("metricbus to mlflow, sqlite", f"{OURS}mlflow", 1_000, "ours"),
    ArmSpec("metricbus to all five sinks", f"{OURS}{ALL}", 1_000, "ours"),
    ArmSpec("logging.info", "logging", 10_000, quick=True),
    ArmSpec("Lightning CSVLogger", "Lightning CSVLogger", 10_000),
    ArmSpec("SummaryWriter", "SummaryWriter", 1_500),
    ArmSpec("wandb Run.log, one mapping per call", "wandb, one mapping per call", 4_000),
    ArmSpec("mlflow log_batch, sqlite", "mlflow, sqlite, log_batch", 500),
    ArmSpec("mlflow log_metric, server", SERVER, 15),
    ArmSpec("trackio", "trackio", 4_000),
]


class Usage(NamedTuple):
    """Resources of one run: CPU seconds, and bytes on disk by owner."""

    seconds: float
    bytes: Mapping[str, int]


class Meter:
    """Measures runs of the arms, and stores the bytes and the texts of all rounds."""

    def __init__(self, context: Context, folder: Path, uri: str) -> None:
        self._context = context
        self._folder = folder
        self._uri = uri
        self._run_numbers = itertools.count()
        self.bytes: dict[str, list[dict[str, float]]] = {}
        self.read_back: dict[str, str] = {}

    def measure_arm(self, arm: ArmSpec) -> Callable[[int], float]:
        """Return a function that measures one round, in microseconds of CPU time per value."""

        def measure(_: int) -> float:
            rows = max(arm.rows // self._context.pick(1, 4), 5)
            folders = [self._folder / f"{next(self._run_numbers)}" for _ in range(2)]
            runs = list(zip(folders, (rows, 0), strict=True))
            with ThreadPoolExecutor(1 if arm.key == SERVER else 2) as pool:  # they share a server
                with_rows, without = pool.map(lambda run: self._run(arm, *run), runs)
            for folder, number in runs:
                self._check(arm, folder, number)
            values = rows * len(NAMES)
            per_value = {
                owner: (size - without.bytes.get(owner, 0)) / values
                for owner, size in with_rows.bytes.items()
            }
            self.bytes.setdefault(arm.name, []).append(per_value)
            return (with_rows.seconds - without.seconds) / values * 1e6

        return measure

    def _run(self, arm: ArmSpec, folder: Path, number: int) -> Usage:
        uri = self._uri if arm.key == SERVER else ""
        before = _server_usage(uri, self._folder)
        python = str(SEPARATE_PEERS.get(arm.key, sys.executable))
        command = [python, "-W", "ignore", "-m", "benchmarks.workloads.metered", "METER"]
        _check_call([*command, arm.key, str(folder), str(number), uri], folder)
        answer = json.loads(folder.with_suffix(ANSWER).read_bytes())
        after = _server_usage(uri, self._folder)
        sizes = {
            owner: size - before.bytes.get(owner, 0)
            for owner, size in {**_bytes(arm, folder), **after.bytes}.items()
        }
        return Usage(answer["seconds"] + after.seconds - before.seconds, sizes)

    def _check(self, arm: ArmSpec, folder: Path, number: int) -> None:
        """Read back the logged values; raise if any are missing."""
        if arm.key.startswith(OURS):
            counts = dict(values_by_sink(folder, arm.key.removeprefix(OURS)))
        elif arm.key == SERVER:
            counts = {arm.name: mlflow_values(self._uri, str(folder))}
        else:
            counts = {arm.name: json.loads(folder.with_suffix(ANSWER).read_bytes())["found"]}
        texts = [complete(name, count, number * len(NAMES)) for name, count in counts.items()]
        if number:
            self.read_back[arm.name] = texts[0]


def measure(context: Context) -> list[Result]:
    """Measure all arms in one run; return a table of CPU time and one of bytes."""
    quiet()
    arms = [arm for arm in ARMS if arm.key not in MISSING and (arm.quick or not context.quick)]
    folder = context.new_folder("footprint")
    if any("mlflow" in arm.key for arm in arms):
        make_template(folder)
    with _server(folder, arms) as uri:
        meter = Meter(context, folder, uri)
        context.log(f"{len(arms)} arms")
        samples = interleaved({arm.name: meter.measure_arm(arm) for arm in arms}, rounds=1)
    return [time_table(arms, samples, meter), bytes_table(arms, meter)]


def time_table(arms: Sequence[ArmSpec], samples: Mapping[str, list[float]], meter: Meter) -> Result:
    """Return the table of CPU time."""
    figures = [
        Figure(arm.name, samples[arm.name], arm.role, read_back=meter.read_back[arm.name])
        for arm in arms
    ]
    title = "CPU time per value, all processes"
    return Result("footprint-time", title, CPU_TEXT, "µs", figures, baseline=JOURNAL)


def bytes_table(arms: Sequence[ArmSpec], meter: Meter) -> Result:
    """Return the table of bytes on disk, by owner."""
    figures = [
        Figure(
            f"{arm.name}: {owner}" if len(meter.bytes[arm.name][0]) > 1 else arm.name,
            [sizes[owner] for sizes in meter.bytes[arm.name]],
            arm.role,
            read_back=meter.read_back[arm.name],
        )
        for arm in arms
        for owner in meter.bytes[arm.name][0]
    ]
    return Result("footprint-bytes", "Bytes on disk per value", BYTES_TEXT, "bytes", figures)


def _bytes(arm: ArmSpec, run: Path) -> dict[str, int]:
    """Return the sizes of the run's files; for metricbus, by journal and sinks."""
    total = _size(file for file in run.rglob("*") if file.is_file())
    if not arm.key.startswith(OURS):
        return {} if arm.key == SERVER else {"all": total}
    sinks = [sink for sink in arm.key.removeprefix(OURS).split(",") if sink]
    own = {sink.partition("?")[0]: _size(own_files(run, sink)) for sink in sinks}
    return {"journal": total - sum(own.values()), **own}


def _size(files: Iterator[Path] | Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


@contextlib.contextmanager
def _server(folder: Path, arms: Sequence[ArmSpec]) -> Iterator[str]:
    if any(arm.key == SERVER for arm in arms):
        with mlflow_server(folder / "server") as uri:
            yield uri
    else:
        yield ""


def _server_usage(uri: str, folder: Path) -> Usage:
    """Return the usage of the server so far, from the running child processes of this process."""
    if not uri:
        return Usage(0.0, {})
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])  # includes waited-for children
    return Usage(seconds, {"all": _size(folder.glob("server/mlflow.db*"))})


def _check_call(command: Sequence[str], folder: Path) -> None:
    output = folder.with_suffix(".output.txt")
    with open(output, "wb") as log:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=RUN_TIMEOUT,
            check=False,
        )
    if done.returncode != 0:
        tail = output.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"The arm {command[-4]!r} failed:\n{tail}")

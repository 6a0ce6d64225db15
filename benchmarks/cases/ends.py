"""How long the ends take: `flush()` with much that waits, and `close()` with five sinks.

`flush()` is measured again and again in this process, with nothing but the journal behind it; each
way to flush in turn. `close()` happens once a run, so each is in a process of its own (`work`),
beside the backends' own closes after the same values. Everything is read back.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.cases.growth import log_to
from benchmarks.cases.starting import fresh
from benchmarks.harness import Context, Figure, Result, Role, Target, interleaved
from benchmarks.peers import PEERS
from benchmarks.peers.services import empty_database
from benchmarks.reading import (
    complete,
    journal_values,
    log_values,
    mlflow_values,
    tensorboard_values,
    tidy_csv_values,
    wandb_values,
)
from metricbus import MetricBus, Scalars
from metricbus.records import encode

NAMES = [f"train/m{i}" for i in range(20)]
PENDING = 10_000
AT_CLOSE = 2_000
NEVER = 3600.0
ATTEMPTS = 5
SINGLE, TOGETHER = "MetricBus.flush(), single values wait", "MetricBus.flush(), mappings of 20 wait"
CLOSE = "MetricBus.close(), five sinks"
CLOSE_PENDING = f"the same, none of {AT_CLOSE:,} values delivered yet"
OWN_CLOSES = {
    "logging": "FileHandler.close",
    "SummaryWriter": "SummaryWriter.close",
    "wandb, a mapping a call": "wandb's Run.finish",
    "mlflow, sqlite, log_batch": "mlflow's set_terminated",
}


def measure(context: Context) -> list[Result]:
    """`flush()`, then `close()`."""
    return [_flushes(context), _closes(context)]


# flush()


class Flush:
    """One way: has `PENDING` values wait, and times what writes them; in milliseconds."""

    role: Role = "ours"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step = 0
        self.open()

    def __call__(self, number: int) -> float:
        """One flush; what the one before has woken up late may write early, then it is not one."""
        for _ in range(ATTEMPTS):
            steps = range(self.step, self.step + PENDING // len(NAMES))
            self.step = steps.stop
            self.log(steps)
            if self.all_wait():
                break
            self.flush()
        else:
            raise RuntimeError(f"never did {PENDING:,} values wait")
        start = time.perf_counter()
        self.flush()
        return (time.perf_counter() - start) * 1e3

    @property
    def logged(self) -> int:
        """Values so far."""
        return self.step * len(NAMES)

    def open(self) -> None:
        """Begins a run."""

    def log(self, steps: range) -> None:
        """Logs twenty values a step; none is written by that."""
        raise NotImplementedError

    def all_wait(self) -> bool:
        """Whether none has been written yet."""
        return True

    def flush(self) -> None:
        """Has them written."""
        raise NotImplementedError

    def close(self) -> int:
        """Ends the run; returns the number of values that are read back."""
        raise NotImplementedError


class SingleValues(Flush):
    """Ours, of a queue with 10,000 calls in it."""

    def open(self) -> None:
        """Nothing but `flush()` has anything written."""
        many = 2 * PENDING
        self.bus = MetricBus(
            id="run",
            sinks="",
            dir=self.folder,
            flush_secs=NEVER,
            batch_size=many,
            queue_size=many,
            flush_bytes=1 << 30,
        )

    def log(self, steps: range) -> None:
        """One value a call."""
        for step in steps:
            for name, value in _row(step).items():
                self.bus.log(name, value, step=step)

    def all_wait(self) -> bool:
        """By the bus's own count."""
        return self.bus.stats().waiting == PENDING

    def flush(self) -> None:
        """As a user has it."""
        self.bus.flush()

    def close(self) -> int:
        """Counts what the journal has."""
        report = self.bus.close()
        if not report.complete:
            raise RuntimeError(str(report))
        return journal_values(self.folder / "run")


class Mappings(SingleValues):
    """Ours, of a queue with 500 calls in it."""

    def log(self, steps: range) -> None:
        """One mapping a step."""
        for step in steps:
            self.bus.log(_row(step), step=step)


class Bytes(Flush):
    """The floor: the same rows by msgspec, in one write, in this thread."""

    role: Role = "floor"

    def open(self) -> None:
        """A file as the journal's."""
        (self.folder / "journal").mkdir()
        self._file = os.open(self.folder / "journal" / "0001.jsonl", os.O_WRONLY | os.O_CREAT)
        self._rows: list[Scalars] = []

    def log(self, steps: range) -> None:
        """Makes the rows."""
        self._rows = [
            Scalars(step=step, epoch=0, time=time.time_ns(), values=_row(step)) for step in steps
        ]

    def flush(self) -> None:
        """One call each."""
        os.write(self._file, encode(self._rows))

    def close(self) -> int:
        """Counts as in a journal."""
        os.close(self._file)
        return journal_values(self.folder)


class LogRecords(Flush):
    """The standard library's way to keep records back and write them at a flush."""

    role: Role = "peer"

    def open(self) -> None:
        """A memory handler before a file handler."""
        self._file = logging.FileHandler(self.folder / "log.txt")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        self._memory = logging.handlers.MemoryHandler(2 * PENDING, logging.CRITICAL, self._file)
        self._logger = logging.Logger("train", logging.INFO)  # without a parent
        self._logger.addHandler(self._memory)

    def log(self, steps: range) -> None:
        """One value a record."""
        for step in steps:
            for name, value in _row(step).items():
                self._logger.info("step %d %s=%g", step, name, value)

    def flush(self) -> None:
        """Formats and writes."""
        self._memory.flush()

    def close(self) -> int:
        """Counts `name=value` in the file."""
        self._memory.close()
        self._file.close()
        return log_values(self.folder / "log.txt")


class Events(Flush):
    """PyTorch's writer, with a queue that is as long; its thread cannot be kept from working."""

    role: Role = "peer"

    def open(self) -> None:
        """A queue of 10 is the default, with which the caller waits for the thread all along."""
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(self.folder, max_queue=2 * PENDING, flush_secs=NEVER)

    def log(self, steps: range) -> None:
        """One value a call."""
        for step in steps:
            for name, value in _row(step).items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Waits for its thread, and flushes the file."""
        self._writer.flush()

    def close(self) -> int:
        """By TensorBoard's loader."""
        self._writer.close()
        return tensorboard_values(self.folder)


def _row(step: int) -> dict[str, float]:
    return {name: (step + at) / 7 for at, name in enumerate(NAMES)}


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
    seen = interleaved(ways, context.pick(100, 5), warm_up=True)
    seen |= interleaved(slow, context.pick(5, 1))  # 10,000 calls take them up to half a second
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


# close()


def work(name: str, folder: Path) -> tuple[float, int]:
    """Logs, and closes: the milliseconds of the close, and the values that are read back."""
    if name in PEERS:
        peer = PEERS[name](folder / "peer")
        for step in range(AT_CLOSE // len(NAMES)):
            peer.log_row(_row(step), step)
        peer.flush()
        return _timed(peer.close), peer.count()
    empty_database(folder / "mlflow.db")
    log_to(folder / "log.txt")
    sinks = "logging,csv,tensorboard,wandb?mode=offline,mlflow"
    bus = MetricBus(id="run", sinks=sinks, dir=folder, close_timeout=120)
    bus.log(_row(0), step=0)
    bus.flush()  # all backends are open
    for step in range(1, AT_CLOSE // len(NAMES)):
        bus.log(_row(step), step=step)
    if name == CLOSE:
        bus.flush()
    milliseconds = _timed(bus.close)
    return milliseconds, _least(bus, folder)


def _least(bus: MetricBus, folder: Path) -> int:
    """What the worst off of the five backends has; raises if any has something else than all."""
    if not bus.stats().complete:
        raise RuntimeError(str(bus.stats()))
    found = {
        "logging": log_values(folder / "log.txt"),
        "csv": tidy_csv_values(folder / "run" / "csv" / "metrics.csv"),
        "tensorboard": tensorboard_values(folder / "run"),
        "wandb": wandb_values(folder / "run"),
        "mlflow": mlflow_values(f"sqlite:///{folder}/mlflow.db"),
    }
    for sink, values in found.items():
        complete(sink, values, AT_CLOSE)
    return min(found.values())


def _timed(close: Callable[[], object]) -> float:
    start = time.perf_counter()
    close()
    return (time.perf_counter() - start) * 1e3


def _closes(context: Context) -> Result:
    wanted = list(OWN_CLOSES)[: context.pick(len(OWN_CLOSES), 2)]
    own = {name: OWN_CLOSES[name] for name in wanted if name in PEERS}
    ours = (CLOSE, CLOSE_PENDING)[: context.pick(2, 1)]
    arms = {name: _closing(context, name) for name in (*ours, *own)}
    context.tell(f"ends: close(), {len(arms)} ways")
    seen = interleaved(arms, context.pick(3, 1))
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
    def run(_: int) -> float:
        folder = context.place("ends-close")
        milliseconds, found = msgspec.json.decode(
            fresh(["-m", __name__, name], folder), type=tuple[float, int]
        )
        complete(name, found, AT_CLOSE)
        shutil.rmtree(folder)
        return milliseconds

    return run


if __name__ == "__main__":
    print(msgspec.json.encode(work(sys.argv[1], Path.cwd())).decode())

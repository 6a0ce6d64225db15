"""The ways to flush whose calls the case `ends` times: ours, the bare bytes, and two others'."""

from __future__ import annotations

import logging
import logging.handlers
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.framework.harness import Role
from benchmarks.workloads.reading import journal_values, log_values, tensorboard_values
from metricbus import MetricBus, Scalars
from metricbus._common.records import encode

NAMES = [f"train/m{i}" for i in range(20)]
PENDING = 10_000
NEVER = 3600.0
ATTEMPTS = 5


def row(step: int) -> dict[str, float]:
    """The values of a step."""
    return {name: (step + at) / 7 for at, name in enumerate(NAMES)}


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
            for name, value in row(step).items():
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
            self.bus.log(row(step), step=step)


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
            Scalars(step=step, epoch=0, time=time.time_ns(), values=row(step)) for step in steps
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
            for name, value in row(step).items():
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
            for name, value in row(step).items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Waits for its thread, and flushes the file."""
        self._writer.flush()

    def close(self) -> int:
        """By TensorBoard's loader."""
        self._writer.close()
        return tensorboard_values(self.folder)

"""Arms of the case `flush_close` that time `flush()`: metricbus, a floor, and two peers."""

from __future__ import annotations

import logging
import logging.handlers
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.framework.harness import Role
from benchmarks.workloads.reading import journal_values, log_values, tensorboard_values
from metricbus import MetricBus, ScalarRow
from metricbus._common.records import encode

NAMES = [f"train/m{i}" for i in range(20)]
PENDING = 10_000
NEVER_SECS = 3600.0
ATTEMPTS = 5


def row(step: int) -> dict[str, float]:
    """Return the values of a step."""
    return {name: (step + i) / 7 for i, name in enumerate(NAMES)}


class Flush:
    """An arm that logs `PENDING` values and times the flush that writes them; base class."""

    role: Role = "ours"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step = 0
        self.open()

    def __call__(self, number: int) -> float:
        """Return the duration of one flush in milliseconds.

        The previous flush may wake the background thread, which then writes some values early. Such
        an attempt is repeated.
        """
        for _ in range(ATTEMPTS):
            steps = range(self.step, self.step + PENDING // len(NAMES))
            self.step = steps.stop
            self.log(steps)
            if self.is_all_pending():
                break
            self.flush()
        else:
            raise RuntimeError(f"Values were written before the flush in {ATTEMPTS} attempts.")
        start = time.perf_counter()
        self.flush()
        return (time.perf_counter() - start) * 1e3

    @property
    def logged(self) -> int:
        """The number of values logged so far."""
        return self.step * len(NAMES)

    def open(self) -> None:
        """Open the run."""

    def log(self, steps: range) -> None:
        """Log 20 values per step; they must not be written yet."""
        raise NotImplementedError

    def is_all_pending(self) -> bool:
        """Check whether all logged values are still pending."""
        return True

    def flush(self) -> None:
        """Write the pending values."""
        raise NotImplementedError

    def close(self) -> int:
        """Close the run; return the number of values that can be read back."""
        raise NotImplementedError


class SingleValues(Flush):
    """metricbus with 10,000 calls in the queue."""

    def open(self) -> None:
        """Open a bus that writes only in `flush()`."""
        limit = 2 * PENDING
        self.bus = MetricBus(
            id="run",
            sinks="",
            dir=self.folder,
            flush_secs=NEVER_SECS,
            batch_size=limit,
            queue_size=limit,
            flush_bytes=1 << 30,
        )

    def log(self, steps: range) -> None:
        """Log one value per call."""
        for step in steps:
            for name, value in row(step).items():
                self.bus.log(name, value, step=step)

    def is_all_pending(self) -> bool:
        """Check the bus's own count of pending values."""
        return self.bus.stats().waiting == PENDING

    def flush(self) -> None:
        """Flush the bus with its public method."""
        self.bus.flush()

    def close(self) -> int:
        """Close the bus; return the number of values in the journal."""
        report = self.bus.close()
        if not report.complete:
            raise RuntimeError(f"Values are missing after close:\n{report}")
        return journal_values(self.folder / "run")


class Mappings(SingleValues):
    """metricbus with 500 calls in the queue."""

    def log(self, steps: range) -> None:
        """Log one mapping per step."""
        for step in steps:
            self.bus.log(row(step), step=step)


class Bytes(Flush):
    """Floor: encodes the same rows with msgspec and writes them at once, in the calling thread."""

    role: Role = "floor"

    def open(self) -> None:
        """Open a file with the layout of a journal segment."""
        (self.folder / "journal").mkdir()
        self._file = os.open(self.folder / "journal" / "0001.jsonl", os.O_WRONLY | os.O_CREAT)
        self._rows: list[ScalarRow] = []

    def log(self, steps: range) -> None:
        """Build the rows."""
        self._rows = [
            ScalarRow(step=step, epoch=0, time=time.time_ns(), values=row(step)) for step in steps
        ]

    def flush(self) -> None:
        """Encode all rows in one call and write them in one call."""
        os.write(self._file, encode(self._rows))

    def close(self) -> int:
        """Close the file; return the number of values in it, counted as in a journal."""
        os.close(self._file)
        return journal_values(self.folder)


class LogRecords(Flush):
    """Standard library logging that buffers records until a flush."""

    role: Role = "peer"

    def open(self) -> None:
        """Attach a memory handler that writes to a file handler."""
        self._file = logging.FileHandler(self.folder / "log.txt")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        self._memory = logging.handlers.MemoryHandler(2 * PENDING, logging.CRITICAL, self._file)
        self._logger = logging.Logger("train", logging.INFO)  # has no parent
        self._logger.addHandler(self._memory)

    def log(self, steps: range) -> None:
        """Log one value per record."""
        for step in steps:
            for name, value in row(step).items():
                self._logger.info("step %d %s=%g", step, name, value)

    def flush(self) -> None:
        """Format and write the buffered records."""
        self._memory.flush()

    def close(self) -> int:
        """Close the handlers; return the number of `name=value` pairs in the file."""
        self._memory.close()
        self._file.close()
        return log_values(self.folder / "log.txt")


class Events(Flush):
    """PyTorch's writer with an equally long queue; its thread always writes some values early."""

    role: Role = "peer"

    def open(self) -> None:
        """Open a writer whose queue never fills.

        With the default length of 10, most calls would wait for the writer's thread.
        """
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(self.folder, max_queue=2 * PENDING, flush_secs=NEVER_SECS)

    def log(self, steps: range) -> None:
        """Log one value per call."""
        for step in steps:
            for name, value in row(step).items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Wait for the writer's thread and flush the file."""
        self._writer.flush()

    def close(self) -> int:
        """Close the writer; return the number of values, read by TensorBoard's loader."""
        self._writer.close()
        return tensorboard_values(self.folder)

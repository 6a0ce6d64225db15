"""Peers that do not fit into the project's own environment, and have one to themselves.

Google's CLU needs TensorFlow; trackio needs an older Pillow than the tests.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from pathlib import Path
from typing import Any

from benchmarks.workloads.reading import tensorboard_values


class CluWriter:
    """CLU's default writer: a log line and TensorFlow's summary, by threads of its own."""

    name = "clu.metric_writers.write_scalars"
    backend = "tensorboard"

    def __init__(self, folder: Path) -> None:
        writers = importlib.import_module("clu.metric_writers")
        self._folder = folder
        self._writer: Any = writers.create_default_writer(str(folder))

    def log(self, name: str, value: float, step: int) -> None:
        """A mapping of one, handed to the writer's threads."""
        self._writer.write_scalars(step, {name: value})

    def log_row(self, values: dict[str, float], step: int) -> None:
        """One mapping."""
        self._writer.write_scalars(step, values)

    def flush(self) -> None:
        """Waits for the threads, and flushes the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()

    def count(self) -> int:
        """By TensorBoard's loader of event files."""
        return tensorboard_values(self._folder)


class Trackio:
    """trackio's run, into its SQLite database, without what it logs of the machine."""

    name = "trackio.log"
    backend = "trackio"

    def __init__(self, folder: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)  # read once, at the import: one run a process
        self._trackio: Any = importlib.import_module("trackio")
        self._folder = folder
        with contextlib.redirect_stdout(io.StringIO()):
            self._run: Any = self._trackio.init(
                project="bench", name="bench", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )

    def log(self, name: str, value: float, step: int) -> None:
        """A mapping of one."""
        self._trackio.log({name: value}, step=step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """One mapping."""
        self._trackio.log(values, step=step)

    def flush(self) -> None:
        """There is no such call: a thread writes twice a second."""

    def close(self) -> None:
        """Waits until the thread has written everything (30 s at most, says trackio)."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()

    def count(self) -> int:
        """By the rows of its own storage, less the columns that it adds."""
        storage: Any = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        rows = storage.get_logs("bench", "bench")
        return sum(len(row.keys() - {"step", "timestamp"}) for row in rows)

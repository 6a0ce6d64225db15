"""Peers that are installed in an environment of their own, because their requirements conflict.

Google's CLU needs TensorFlow. trackio needs an older version of Pillow than the tests.
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
    """CLU's default writer, whose threads write log lines and TensorFlow summaries."""

    name = "clu.metric_writers.write_scalars"
    backend = "tensorboard"

    def __init__(self, folder: Path) -> None:
        writers = importlib.import_module("clu.metric_writers")
        self._folder = folder
        self._writer: Any = writers.create_default_writer(str(folder))

    def log(self, name: str, value: float, step: int) -> None:
        """Pass a mapping with one value to the writer's threads."""
        self._writer.write_scalars(step, {name: value})

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Pass one mapping to the writer's threads."""
        self._writer.write_scalars(step, values)

    def flush(self) -> None:
        """Wait for the threads and flush the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def count(self) -> int:
        """Count the values with TensorBoard's event file loader."""
        return tensorboard_values(self._folder)


class Trackio:
    """A trackio run that writes to its SQLite database, without system metrics."""

    name = "trackio.log"
    backend = "trackio"

    def __init__(self, folder: Path) -> None:
        # trackio reads the variable on import, so a process can only have one run.
        os.environ["TRACKIO_DIR"] = str(folder)
        self._trackio: Any = importlib.import_module("trackio")
        self._folder = folder
        with contextlib.redirect_stdout(io.StringIO()):
            self._run: Any = self._trackio.init(
                project="bench", name="bench", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )

    def log(self, name: str, value: float, step: int) -> None:
        """Log a mapping with one value."""
        self._trackio.log({name: value}, step=step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Log one mapping."""
        self._trackio.log(values, step=step)

    def flush(self) -> None:
        """Do nothing: trackio has no flush; its thread writes twice per second."""

    def close(self) -> None:
        """Wait until the thread has written everything, at most 30 s according to trackio."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()

    def count(self) -> int:
        """Count the cells in trackio's storage, without the columns that it adds."""
        storage: Any = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        rows = storage.get_logs("bench", "bench")
        return sum(len(row.keys() - {"step", "timestamp"}) for row in rows)

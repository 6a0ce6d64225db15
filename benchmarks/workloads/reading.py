"""What each backend has after a run: values counted by the backend's own reader.

Only the standard library is imported here; each reader imports what it reads with.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_WANDB_HEADER = 7  # bytes before the first block of a `.wandb` file
_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")  # of LevelDB's log format: checksum, length, type
_FULL, _LAST = 1, 4
_FLOATS = (1, 2)  # DT_FLOAT and DT_DOUBLE
_ROW = re.compile(r": step \d+ .*")
_LOGGED = re.compile(r"\S+=(\S+)")


class IncompleteError(Exception):
    """A backend does not have what was logged to it."""


def complete(name: str, found: int, logged: int) -> str:
    """`20,000 of 20,000`, for a `Figure`; `IncompleteError` when it is any other number."""
    if found != logged:
        raise IncompleteError(f"{name}: {logged:,} values were logged, {found:,} were read back")
    return f"{found:,} of {logged:,}"


def tensorboard_values(folder: Path) -> int:
    """Scalars in all event files below a folder, by TensorBoard's own loader."""
    loader: Any = importlib.import_module(
        "tensorboard.backend.event_processing.event_file_loader"
    ).LegacyEventFileLoader
    return sum(
        _is_scalar(value)
        for file in folder.rglob("events.out.tfevents.*")
        for event in loader(str(file)).Load()
        for value in event.summary.value
    )


def _is_scalar(value: Any) -> bool:
    if value.HasField("simple_value"):
        return True
    tensor = value.tensor  # as TensorFlow 2 writes scalars
    return value.HasField("tensor") and tensor.dtype in _FLOATS and not tensor.tensor_shape.dim


def wandb_values(folder: Path) -> int:
    """Values in the history of all `.wandb` files below a folder.

    W&B's own columns (`_…`) and metricbus's (`metricbus/…`) do not count.
    """
    return sum(
        not key.startswith(("_", "metricbus/"))
        for file in folder.rglob("*.wandb")
        for record in _wandb_records(file)
        if record.HasField("history")
        for key in map(_key, record.history.item)
    )


def _key(item: Any) -> str:
    return "/".join(item.nested_key) or str(item.key)


def _wandb_records(file: Path) -> Iterator[Any]:
    """The records of a LevelDB log, each of one chunk or of several."""
    record: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, parts = file.read_bytes(), _WANDB_HEADER, b""
    while at + _CHUNK.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK.size:  # the block's end is padding
            at += left
            continue
        _, length, kind = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        parts += data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            yield record.FromString(parts)
            parts = b""


def mlflow_values(uri: str, experiment: str | None = None) -> int:
    """All points of all metrics of all runs (of an experiment), by MLflow's own client."""
    client: Any = importlib.import_module("mlflow").MlflowClient(uri)
    found = client.search_experiments()
    ids = [one.experiment_id for one in found if experiment in (None, one.name)]
    return sum(
        len(client.get_metric_history(run.info.run_id, key))
        for run in client.search_runs(ids)
        for key in run.data.metrics
    )


def wide_csv_values(file: Path) -> int:
    """Cells with a number, but for the step's, of a table with a column a name."""
    with open(file, newline="") as lines:
        return _numbers(
            cell for row in csv.DictReader(lines) for key, cell in row.items() if key != "step"
        )


def tidy_csv_values(file: Path) -> int:
    """Rows of the kind `scalar` with a number, of a table with a row a value."""
    with open(file, newline="") as lines:
        return _numbers(row["value"] for row in csv.DictReader(lines) if row["kind"] == "scalar")


def log_values(file: Path) -> int:
    """Values in the log lines that begin with a step, written as `name=value`."""
    with open(file) as lines:
        rows = [found[0] for line in lines if (found := _ROW.search(line))]
    return _numbers(value for row in rows for value in _LOGGED.findall(row))


def _numbers(cells: Iterable[str]) -> int:
    return len([float(cell) for cell in cells if cell])  # what is no number raises


def journal_values(run: Path) -> int:
    """Scalars in the journal of a run's folder; a line is JSON, and read as such."""
    count = 0
    for segment in run.glob("journal/*.jsonl"):
        with open(segment, "rb") as lines:
            count += sum(len(json.loads(line).get("values", ())) for line in lines)
    return count

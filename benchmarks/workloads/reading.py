"""Readers that count the values in each backend after a run, with the backend's own reader.

This module imports only the standard library; each function imports the reader that it needs.
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

# LevelDB's log format: the size of a block, and the header of a chunk (checksum, length, type).
_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")
_FULL, _LAST = 1, 4
_FLOATS = (1, 2)  # DT_FLOAT and DT_DOUBLE
_ROW = re.compile(r": step \d+ .*")
_NAME_VALUE = re.compile(r"\S+=(\S+)")


class IncompleteError(Exception):
    """A backend does not contain every logged value."""


def complete(name: str, found: int, logged: int) -> str:
    """Return a text such as `20,000 of 20,000` for a `Figure`; raise if the counts differ."""
    if found != logged:
        raise IncompleteError(f"{name}: {logged:,} values were logged, {found:,} were read back")
    return f"{found:,} of {logged:,}"


def tensorboard_values(folder: Path) -> int:
    """Count the scalars in all event files below a folder, with TensorBoard's loader."""
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
    tensor = value.tensor  # TensorFlow 2 writes scalars as tensors
    return value.HasField("tensor") and tensor.dtype in _FLOATS and not tensor.tensor_shape.dim


def wandb_values(folder: Path) -> int:
    """Count the history values in all `.wandb` files below a folder.

    The columns of W&B (`_…`) and of metricbus (`metricbus/…`) do not count.
    """
    return sum(
        not key.startswith(("_", "metricbus/"))
        for file in folder.rglob("*.wandb")
        for record in _wandb_records(file)
        if record.HasField("history")
        for key in map(_history_key, record.history.item)
    )


def _history_key(item: Any) -> str:
    return "/".join(item.nested_key) or str(item.key)


def _wandb_records(file: Path) -> Iterator[Any]:
    """Yield the records of a LevelDB log; a record has one chunk or several."""
    record: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, offset, parts = file.read_bytes(), _WANDB_HEADER, b""
    while offset + _CHUNK.size <= len(data):
        rest_of_block = _BLOCK - offset % _BLOCK
        if rest_of_block < _CHUNK.size:  # padding
            offset += rest_of_block
            continue
        _, length, kind = _CHUNK.unpack_from(data, offset)
        offset += _CHUNK.size
        parts += data[offset : offset + length]
        offset += length
        if kind in (_FULL, _LAST):
            yield record.FromString(parts)
            parts = b""


def mlflow_values(uri: str, experiment: str | None = None) -> int:
    """Count the metric values of all runs, or of one experiment's runs, with MLflow's client."""
    client: Any = importlib.import_module("mlflow").MlflowClient(uri)
    experiments = client.search_experiments()
    ids = [entry.experiment_id for entry in experiments if experiment in (None, entry.name)]
    return sum(
        len(client.get_metric_history(run.info.run_id, key))
        for run in client.search_runs(ids)
        for key in run.data.metrics
    )


def wide_csv_values(file: Path) -> int:
    """Count the numbers in a table with one column per name, except in the column `step`."""
    with open(file, newline="") as lines:
        return _count_numbers(
            cell for row in csv.DictReader(lines) for key, cell in row.items() if key != "step"
        )


def tidy_csv_values(file: Path) -> int:
    """Count the numbers in a table with one row per value, in rows of kind `scalar`."""
    with open(file, newline="") as lines:
        return _count_numbers(
            row["value"] for row in csv.DictReader(lines) if row["kind"] == "scalar"
        )


def log_values(file: Path) -> int:
    """Count `name=value` pairs in log lines whose message starts with a step."""
    with open(file) as lines:
        rows = [match[0] for line in lines if (match := _ROW.search(line))]
    return _count_numbers(value for row in rows for value in _NAME_VALUE.findall(row))


def _count_numbers(cells: Iterable[str]) -> int:
    return len([float(cell) for cell in cells if cell])  # raises for text that is not a number


def journal_values(run: Path) -> int:
    """Count the scalars in the journal of a run folder."""
    count = 0
    for segment in run.glob("journal/*.jsonl"):
        with open(segment, "rb") as lines:
            count += sum(len(json.loads(line).get("values", ())) for line in lines)
    return count

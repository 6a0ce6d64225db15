"""Reads W&B's own files, independently of the sink."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]


def wandb_records(file: Path) -> Iterator[Any]:
    """The whole records of a `.wandb` file: a LevelDB log after 7 bytes."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        chunk = data[at + 7 : at + 7 + length]
        if kind == 0 or len(chunk) < length:
            return
        at, record = at + 7 + length, record + chunk
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def wandb_files(folder: Path) -> list[Path]:
    """The files of a run's folder, the oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def wandb_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The history rows of all files of a run, as W&B would show them."""
    for file in wandb_files(folder):
        for record in wandb_records(file):
            if record.HasField("history"):
                row: dict[str, Any] = {}
                _put(row, record.history.item)
                yield row


def wandb_config(folder: Path) -> dict[str, Any]:
    """The run's config as it becomes with all updates, W&B's own part among it."""
    found: dict[str, Any] = {}
    for file in wandb_files(folder):
        for record in wandb_records(file):
            _put(found, record.run.config.update)
            _put(found, record.config.update)
    return found


def _put(held: dict[str, Any], items: Any) -> None:
    for item in items:
        value = json.loads(item.value_json)
        for key in reversed(item.nested_key or [item.key]):
            value = {key: value}
        _merge(held, value)


def _merge(held: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(held.get(key), dict):
            _merge(held[key], value)
        else:
            held[key] = value


def wandb_path(folder: Path, path: str) -> Path:
    """A file that W&B keeps for the run, by the path that a row has."""
    (found,) = [
        file.parent / "files" / path
        for file in wandb_files(folder)
        if (file.parent / "files" / path).exists()
    ]
    return found


def wandb_artifacts(folder: Path) -> list[tuple[str, dict[str, Path]]]:
    """The run's artifacts in order: their names, and where their files wait to be sent."""
    return [
        (
            record.artifact.name,
            {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents},
        )
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField("artifact")
    ]

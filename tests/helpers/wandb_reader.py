"""A reader for W&B's files that does not depend on the sink."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]


def wandb_records(file: Path) -> Iterator[Any]:
    """Yield the complete records of a `.wandb` file: a LevelDB log after a header of 7 bytes."""
    data, offset, record = file.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        chunk = data[offset + 7 : offset + 7 + length]
        if kind == 0 or len(chunk) < length:
            return
        offset, record = offset + 7 + length, record + chunk
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def wandb_files(folder: Path) -> list[Path]:
    """Return the `.wandb` files in a run folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def wandb_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the history rows of all files of a run, with nested keys as dictionaries."""
    for file in wandb_files(folder):
        for record in wandb_records(file):
            if record.HasField("history"):
                row: dict[str, Any] = {}
                _merge_items(row, record.history.item)
                yield row


def wandb_config(folder: Path) -> dict[str, Any]:
    """Return the run's config after all updates, including W&B's own entries."""
    config: dict[str, Any] = {}
    for file in wandb_files(folder):
        for record in wandb_records(file):
            _merge_items(config, record.run.config.update)
            _merge_items(config, record.config.update)
    return config


def wandb_tags(folder: Path) -> list[str]:
    """Return the run's tags after all updates."""
    runs = [
        record.run
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField("run")
    ]
    return list(runs[-1].tags)


def wandb_summary(folder: Path) -> dict[str, Any]:
    """Return the values that were set in the run's summary, without W&B's own last values."""
    summary: dict[str, Any] = {}
    for file in wandb_files(folder):
        for record in wandb_records(file):
            _merge_items(summary, record.summary.update)
            for item in record.summary.remove:
                summary.pop(item.key or item.nested_key[0], None)
    return summary


def _merge_items(target: dict[str, Any], items: Any) -> None:
    for item in items:
        value = json.loads(item.value_json)
        for key in reversed(item.nested_key or [item.key]):
            value = {key: value}
        _merge(target, value)


def _merge(target: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def wandb_path(folder: Path, path: str) -> Path:
    """Return the file in W&B's folder for a path in a history row."""
    (existing,) = [
        file.parent / "files" / path
        for file in wandb_files(folder)
        if (file.parent / "files" / path).exists()
    ]
    return existing


def wandb_artifacts(folder: Path) -> list[tuple[str, dict[str, Path]]]:
    """Return the names of the run's artifacts in order, and the paths of their staged files."""
    return [
        (
            record.artifact.name,
            {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents},
        )
        for file in wandb_files(folder)
        for record in wandb_records(file)
        if record.HasField("artifact")
    ]

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
                yield {
                    (item.nested_key[0] if item.nested_key else item.key): json.loads(
                        item.value_json
                    )
                    for item in record.history.item
                }

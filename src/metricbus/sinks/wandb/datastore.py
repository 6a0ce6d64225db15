"""The files in which W&B keeps a run: which they are, and how many rows are in one.

A file is W&B's own transaction log, of an offline run as of an online one. It is a LevelDB log
(https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7 bytes: blocks
of 32 KiB with chunks in them, each of a CRC (uint32), a length (uint16), a type (uint8) and data,
little-endian. One record is a chunk of type 1, or those of the types 2, 3 … 3 and 4. It is a
`wandb_internal.Record`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

_MARK = "metricbus-place"  # beside W&B's file: several sinks may share the folder
_FILE_HEADER = 7
_BLOCK = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_FULL, _LAST = 1, 4


class HistoryFile:
    """One run's file, read on as it grows.

    `newest` is the last `_step` in it, -1 without one; `ended` whether the run's end is in it.
    """

    def __init__(self, path: Path) -> None:
        self.newest = -1
        self.ended = False
        self._path = path
        self._offset = _FILE_HEADER

    def read_on(self) -> int:
        """The newest step, after reading what has been written since."""
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        for data in reversed(list(self._records())):
            record = Record.FromString(data)
            self.ended |= record.HasField("exit")
            if record.HasField("history"):
                self.newest = step_of(record)
                break
        return self.newest

    def _records(self) -> Iterator[bytes]:
        """The whole records that have not been read yet."""
        if os.path.getsize(self._path) <= self._offset:
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        start, at, parts = self._offset, 0, []
        while at + _CHUNK.size <= len(content):
            left = _BLOCK - (start + at) % _BLOCK
            if left < _CHUNK.size:
                at += left
                continue
            _, length, kind = _CHUNK.unpack_from(content, at)
            end = at + _CHUNK.size + length
            if kind == 0 or end > len(content):
                return
            parts.append(content[at + _CHUNK.size : end])
            at = end
            if kind in (_FULL, _LAST):
                self._offset = start + at
                yield b"".join(parts)
                parts = []


def step_of(record: Record) -> int:
    """The `_step` of a history record."""
    if record.history.HasField("step"):
        return int(record.history.step.num)
    for item in record.history.item:
        if item.key == "_step" or list(item.nested_key) == ["_step"]:
            return int(item.value_json)
    return -1


def mark_place(file: Path, place: str) -> None:
    """Says for which place the sink is that had the file made."""
    (file.parent / _MARK).write_text(place, encoding="utf-8")


def files_of(folder: Path, place: str, *, offline: bool) -> list[Path]:
    """The files in W&B's folder that are marked so, the oldest first; with `offline` runs' or not.

    Those without a mark had no row yet.
    """
    pattern = "*run-*-*" if offline else "run-*-*"
    return [
        file for file in sorted(folder.glob(f"{pattern}/run-*.wandb")) if _place_of(file) == place
    ]


def _place_of(file: Path) -> str | None:
    try:
        return (file.parent / _MARK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None

"""Reads W&B's transaction logs, to find out which rows a run already has.

W&B writes one `run-*.wandb` file each time a run is started or resumed, online or offline. The file
is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7
bytes: blocks of 32 KiB, filled with chunks. A chunk is a CRC (uint32), a length (uint16), a type
(uint8) and data; integers are little-endian. A record, a serialized `wandb_internal.Record`, is one
chunk of type 1, or chunks of the types 2, 3 … 3, 4.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

_DESTINATION_FILE = "metricbus-place"
_HEADER_SIZE = 7
_BLOCK_SIZE = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_FULL, _LAST = 1, 4


class HistoryFile:
    """Follows the growing log of one run.

    `last_step` is the last `_step` in the file, or -1; `has_exit` whether the end of the run is.
    """

    def __init__(self, path: Path) -> None:
        self.last_step = -1
        self.has_exit = False
        self._path = path
        self._offset = _HEADER_SIZE

    def read_new(self) -> int:
        """Read what was appended since the last call, and return the last step."""
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        for data in reversed(list(self._new_records())):
            record = Record.FromString(data)
            self.has_exit |= record.HasField("exit")
            if record.HasField("history"):
                self.last_step = _step_of(record)
                break
        return self.last_step

    def _new_records(self) -> Iterator[bytes]:
        """Yield the complete records after the offset, and advance it."""
        if os.path.getsize(self._path) <= self._offset:
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        start, at, parts = self._offset, 0, []
        while at + _CHUNK.size <= len(content):
            rest_of_block = _BLOCK_SIZE - (start + at) % _BLOCK_SIZE
            if rest_of_block < _CHUNK.size:
                at += rest_of_block
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


def _step_of(record: Record) -> int:
    if record.history.HasField("step"):
        return int(record.history.step.num)
    for item in record.history.item:
        if item.key == "_step" or list(item.nested_key) == ["_step"]:
            return int(item.value_json)
    return -1


def save_destination(file: Path, destination: str) -> None:
    """Store next to W&B's file for which destination it was made; sinks may share the folder."""
    (file.parent / _DESTINATION_FILE).write_text(destination, encoding="utf-8")


def find_files(folder: Path, destination: str, *, offline: bool) -> list[Path]:
    """Return W&B's files for this destination, oldest first: of offline runs, or of online ones.

    A file without a saved destination has no rows yet, and is left out.
    """
    pattern = "*run-*-*" if offline else "run-*-*"
    files = sorted(folder.glob(f"{pattern}/run-*.wandb"))
    return [file for file in files if _read_destination(file) == destination]


def _read_destination(file: Path) -> str | None:
    try:
        return (file.parent / _DESTINATION_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None

"""wandb: its files of saved rows, its service process, and settings that it may rename.

W&B writes one `run-*.wandb` file each time a run is started or resumed, online or offline. The file
is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7
bytes: blocks of 32 KiB, filled with chunks. A chunk is a CRC (uint32), a length (uint16), a type
(uint8) and data; integers are little-endian. A record, a serialized `wandb_internal.Record`, is one
chunk of type 1, or chunks of the types 2, 3 … 3, 4.
"""

from __future__ import annotations

import functools
import inspect
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricbus._compat.degrade import degrading, report_change

if TYPE_CHECKING:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

_DESTINATION_FILE = "metricbus-place"
_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK_SIZE = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_FULL, _LAST = 1, 4

_CONNECTION_ERRORS = (
    ("wandb.sdk.lib.asyncio_manager", "AlreadyJoinedError"),
    ("wandb.sdk.lib.service.service_token", "WandbServiceConnectionError"),
    ("wandb.sdk.mailbox.mailbox", "MailboxClosedError"),
    ("wandb.sdk.mailbox.mailbox_handle", "HandleAbandonedError"),
)


class HistoryFile:
    """Follows the growing log of one run.

    `last_step` is the last `_step` in the file, or -1; `has_exit` whether the end of the run is.
    `is_readable` is false if this version of W&B writes something else.
    """

    def __init__(self, path: Path) -> None:
        self.last_step = -1
        self.has_exit = False
        self.is_readable = True
        self._path = path
        self._offset = 0

    def read_new(self) -> int:
        """Read what was appended since the last call, and return the last step."""
        with degrading(
            "wandb",
            "the format of run-*.wandb",
            "rows count as saved only when the run ends; after a crash, all are sent again",
        ):
            self._read_new()
            return self.last_step
        self.is_readable = False
        return self.last_step

    def _read_new(self) -> None:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        for data in reversed(list(self._new_records())):
            record = Record.FromString(data)
            self.has_exit |= record.HasField("exit")
            if record.HasField("history"):
                self.last_step = _step_of(record)
                return

    def _new_records(self) -> Iterator[bytes]:
        """Yield the complete records after the offset, and advance it."""
        if os.path.getsize(self._path) <= max(self._offset, len(_HEADER)):
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        start, at, parts = self._offset, 0, []
        if start == 0:
            if not content.startswith(_HEADER):
                raise ValueError(f"{self._path} begins with {content[: len(_HEADER)]!r}")
            at = len(_HEADER)
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


@contextmanager
def without_waiting(run: wandb.Run) -> Iterator[None]:
    """Send rows that are logged in the block to the service process without waiting.

    `Run.log()` normally waits until another thread has written to the socket, which takes longer
    than the rest of the call. W&B sends console output without waiting; this uses the same path.
    Order is kept. The next call outside the block waits for all of them, and raises if one failed.
    """
    interface: Any = None
    with degrading("wandb", "Run._interface._publish", "each row is waited for, which is slower"):
        changed: Any = run._interface
        publish = functools.partial(changed._publish, nowait=True)
        inspect.signature(publish).bind(None)
        changed._publish = publish
        interface = changed
    try:
        yield
    finally:
        if interface is not None:
            del interface._publish


def is_connection_error(error: Exception) -> bool:
    """Check whether a call of W&B failed because its service process is dead."""
    return isinstance(error, (OSError, *_connection_errors()))


@functools.cache
def _connection_errors() -> tuple[type[Exception], ...]:
    found: list[type[Exception]] = []
    for module, name in _CONNECTION_ERRORS:
        loss = "rows may be rejected when its service process dies, instead of sent again"
        with degrading("wandb", f"{module}.{name}", loss):
            found.append(getattr(import_module(module), name))
    return tuple(found)


def make_settings(**fields: Any) -> wandb.Settings:
    """Return settings with these fields, without those that this version of W&B does not have."""
    import wandb

    known = {name: fields[name] for name in fields if name in wandb.Settings.model_fields}
    for name in fields.keys() - known.keys():
        missing = AttributeError("there is no such setting")
        report_change("wandb", f"Settings.{name}", "W&B's default applies", missing)
    return wandb.Settings(**known)


def forget_active_run(run: wandb.Run) -> None:
    """Keep a later `wandb.init()` in the script from returning or finishing this run."""
    import wandb

    loss = "wandb.init() in the script may return or finish the run of the sink"
    with degrading("wandb", "setup().remove_active_run", loss):
        wandb.setup().remove_active_run(run)


def raise_row_limits(rows: int) -> None:
    """Keep W&B from truncating a table with this number of rows."""
    import wandb

    # the limits are never lowered again, because another thread may be using them
    for limit in ("MAX_ROWS", "MAX_ARTIFACT_ROWS"):
        with degrading("wandb", f"Table.{limit}", "W&B may truncate long tables"):
            setattr(wandb.Table, limit, max(getattr(wandb.Table, limit), rows))

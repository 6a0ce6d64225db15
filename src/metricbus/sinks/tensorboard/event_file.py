"""Event files of TensorBoard: their framing as TFRecords, and appending to an existing file.

A file is a sequence of records. Each consists of its length (uint64), the CRC of the length
(uint32), the data, and the CRC of the data (uint32), all little-endian. The CRCs are CRC-32C,
masked as in https://www.tensorflow.org/tutorials/load_data/tfrecord. The data is a serialized
`tensorflow.Event`; the first event has the version of the file format.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c

from metricbus._common.files import AppendFile
from metricbus._compat.tensorboard import Event, SessionLog, Summary

if TYPE_CHECKING:
    from metricbus._common.records import Rewind, ScalarRow

SCALAR = "simple_value"
"""The field of `Summary.Value` that holds a scalar."""

_MASK_DELTA = 0xA282EAD8
_MAX_CACHED = 1000
_BELOW_ALL_STEPS = -(1 << 64)
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")


class EventFile:
    """An event file with a single writer, to which events are appended.

    `last_steps` has the last step of each tag. `media_tags` has the tags of media that were in the
    file when it was opened, each with the field of `Summary.Value` that holds its values. `hparams`
    has the first data for the HPARAMS page in the file.

    After a crash, the file may extend beyond its saved length. The records behind that part are
    delivered again in the same order; `register` and `register_rewind` recognize them.
    """

    def __init__(self, path: Path, saved_length: int, wall_time: float) -> None:
        """Open or create the file and read its events.

        `wall_time`, in seconds since 1970, is that of the first event of a new file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last_steps: dict[str, int] = {}
        self.media_tags: dict[str, str] = {}
        self.hparams = b""
        self._unmatched: deque[tuple[bool, int]] = deque()  # whether a rewind, and its end
        self._matched_length = 0  # meaningful while there are unmatched events
        self._file = AppendFile(path, shared=True)
        try:
            self._read(path, saved_length, wall_time)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path, saved_length: int, wall_time: float) -> None:
        whole = 0
        for data, end in read_tfrecords(path):
            event = Event.FromString(data)
            whole = end
            if content := _hparams_content(event):
                self.hparams = self.hparams or content
            elif event.HasField("summary") or event.HasField("session_log"):
                is_rewind = event.HasField("session_log")
                if end > saved_length:
                    self._unmatched.append((is_rewind, end))
                elif is_rewind:
                    self._rewind(event.step - 1)
                else:
                    self._add_tags(event)
        self._matched_length = min(saved_length, whole)
        if whole < self._file.length:
            # Only an incomplete event is removed: TensorBoard may have read the complete ones.
            self._file.truncate(whole)
        if not whole:
            version = Event(wall_time=wall_time, file_version="brain.Event:2")
            self.append([version.SerializeToString()])

    def _add_tags(self, event: Event) -> None:
        values = event.summary.value
        self.last_steps.update((value.tag, event.step) for value in values)
        if values and not values[0].HasField(SCALAR):
            self.media_tags.update((value.tag, value.WhichOneof("value")) for value in values)

    @property
    def length(self) -> int:
        """The length in bytes, without events whose records have not been delivered again yet."""
        return self._matched_length if self._unmatched else self._file.length

    @property
    def has_unmatched(self) -> bool:
        """Whether the file has events whose records have not been delivered again yet."""
        return bool(self._unmatched)

    def is_increasing(self, tags: Iterable[str], step: int) -> bool:
        """Check whether `step` is greater than the last step of each of the tags."""
        last_steps = self.last_steps
        for tag in tags:  # noqa: SIM110 - twice as fast as all() with a generator
            if last_steps.get(tag, _BELOW_ALL_STEPS) >= step:
                return False
        return True

    def register(self, tags: Iterable[str], step: int) -> bool:
        """Register an event; return True if it must be written, False if it is in the file."""
        for tag in tags:
            self.last_steps[tag] = step
        if self._unmatched:
            _, self._matched_length = self._unmatched.popleft()
            return False
        return True

    def register_rewind(self, step: int) -> bool:
        """Register a rewind to `step`; return True if its event must be written."""
        self._rewind(step)
        if not self._unmatched:
            return True
        if self._unmatched[0][0]:
            _, self._matched_length = self._unmatched.popleft()
        return False  # this file may have been created after the rewind

    def _rewind(self, step: int) -> None:
        self.last_steps = {tag: min(last, step) for tag, last in self.last_steps.items()}

    def append(self, events: Iterable[bytes]) -> None:
        """Append serialized events, all or none, with a single write."""
        self._file.append(b"".join(map(encode_tfrecord, events)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EventBuilder:
    """Converts rows to serialized events: one event with all values of a row, as float32.

    The message for each combination of names is reused, which takes a third of the time.
    """

    def __init__(self) -> None:
        self._cache: dict[tuple[str, ...], tuple[Event, list[Summary.Value]]] = {}

    def __call__(self, row: ScalarRow) -> bytes:
        """Return the event of a row."""
        names = tuple(row.values)
        cached = self._cache.get(names)
        event, values = self._create(names) if cached is None else cached
        event.wall_time = row.time / 1e9
        event.step = row.x
        for value, number in zip(values, row.values.values(), strict=True):
            value.simple_value = number
        return bytes(event.SerializeToString())

    def rewind(self, record: Rewind) -> bytes:
        """Return an event after which TensorBoard discards later steps, as with `purge_step`."""
        log = SessionLog(status=SessionLog.START)
        event = Event(wall_time=record.time / 1e9, step=record.step + 1, session_log=log)
        return bytes(event.SerializeToString())

    def _create(self, names: tuple[str, ...]) -> tuple[Event, list[Summary.Value]]:
        event = Event(summary=Summary(value=[Summary.Value(tag=name) for name in names]))
        created = event, list(event.summary.value)
        if len(self._cache) < _MAX_CACHED:
            self._cache[names] = created
        return created


def encode_tfrecord(data: bytes) -> bytes:
    """Return `data` as one TFRecord."""
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CRC.pack(_masked_crc(length)), data, _CRC.pack(_masked_crc(data))))


def read_tfrecords(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield each record and the offset of its end, up to the first incomplete or corrupt one."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 0
        while size >= start + 16:
            (length,) = _LENGTH.unpack_from(file.read(12))
            end = start + 16 + length
            if end > size:
                return
            data = file.read(length)
            if _CRC.unpack(file.read(4))[0] != _masked_crc(data):
                return
            yield data, end
            start = end


def _hparams_content(event: Event) -> bytes:
    """Return the data for the HPARAMS page in an event; empty for any other event."""
    for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == "hparams":
            return bytes(value.metadata.plugin_data.content)
    return b""


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF

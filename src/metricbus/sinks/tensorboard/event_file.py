"""TensorBoard's event files: TFRecord framing, and one file that can be continued.

A file is a sequence of records: length (uint64), CRC of the length (uint32), data, CRC of the data
(uint32), all little-endian, with a CRC-32C that is masked as in
https://www.tensorflow.org/tutorials/load_data/tfrecord. The data is a `tensorflow.Event`; the first
one names the file's version.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from metricbus._common.files import AppendFile

if TYPE_CHECKING:
    from metricbus._common.records import Rewind, Scalars

SCALAR = "simple_value"
"""What `Summary.Value` calls the value of a scalar."""

_MASK_DELTA = 0xA282EAD8
_MOST_COMBINATIONS = 1000
_BELOW_ALL = -(1 << 64)
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")


class EventFile:
    """One event file with at most one writer at a time, to which events are appended.

    `newest` has the last step of each tag; `media` has the tags of what was no scalar when the file
    was opened, each with the sort of its values. What stands in the file beyond the length that
    counted when it was opened comes again, and must not be written twice.
    """

    def __init__(self, path: Path, counted: int, wall_time: float) -> None:
        """Opens the file, new or old, and reads what is in it; `counted` bytes of it count."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.newest: dict[str, int] = {}
        self.media: dict[str, str] = {}
        self._again: deque[tuple[bool, int]] = deque()  # whether it is a rewind, and where it ends
        self._seen = 0  # the end of what counts, while something has still to come again
        self.has_hparams = False
        self._file = AppendFile(path, shared=True)
        try:
            self._read(path, counted, wall_time)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path, counted: int, wall_time: float) -> None:
        whole = 0
        for event, end in read_events(path):
            whole = end
            if _is_hparams(event):
                self.has_hparams = True
            elif event.HasField("summary") or event.HasField("session_log"):
                is_rewind = event.HasField("session_log")
                if end > counted:
                    self._again.append((is_rewind, end))
                elif is_rewind:
                    self._go_back(event.step - 1)
                else:
                    self._take(event)
        self._seen = min(counted, whole)
        if whole < self._file.length:
            self._file.cut(whole)  # a torn record; whole ones stay, a live reader is past them
        if not whole:
            version = Event(wall_time=wall_time, file_version="brain.Event:2")
            self.append([version.SerializeToString()])

    def _take(self, event: Event) -> None:
        values = event.summary.value
        self.newest.update((value.tag, event.step) for value in values)
        if values and not values[0].HasField(SCALAR):
            self.media.update((value.tag, value.WhichOneof("value")) for value in values)

    @property
    def length(self) -> int:
        """The bytes that count: those written, but for what has still to come again."""
        return self._seen if self._again else self._file.length

    @property
    def is_behind(self) -> bool:
        """Whether something in the file has still to come again."""
        return bool(self._again)

    def takes(self, tags: Iterable[str], step: int) -> bool:
        """Whether the step is beyond every one that the tags have in this file."""
        newest = self.newest
        for tag in tags:  # noqa: SIM110 - twice as fast as all() over a generator
            if newest.get(tag, _BELOW_ALL) >= step:
                return False
        return True

    def see(self, tags: Iterable[str], step: int) -> bool:
        """Counts an event as being in the file; whether it has still to be written."""
        for tag in tags:
            self.newest[tag] = step
        if self._again:
            _, self._seen = self._again.popleft()
            return False
        return True

    def see_rewind(self, step: int) -> bool:
        """Goes back to this step; whether that has still to be written."""
        self._go_back(step)
        if not self._again:
            return True
        if self._again[0][0]:
            _, self._seen = self._again.popleft()
        return False  # else the file was not there yet when it came first

    def _go_back(self, step: int) -> None:
        self.newest = {tag: min(newest, step) for tag, newest in self.newest.items()}

    def append(self, events: Iterable[bytes]) -> None:
        """Appends all (serialized) events in one write, or none."""
        self._file.append(b"".join(map(frame, events)))

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()


class EventMaker:
    """Turns rows into events: one event with all values of the row, as float32.

    Messages are made once for each combination of names and filled in again for each row, which
    takes a third of the time.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, ...], tuple[Event, list[Summary.Value]]] = {}

    def __call__(self, row: Scalars) -> bytes:
        """The row's event, serialized."""
        names = tuple(row.values)
        made = self._made.get(names)
        if made is None:
            made = self._make(names)
        event, values = made
        event.wall_time = row.time / 1e9
        event.step = row.x
        for value, number in zip(values, row.values.values(), strict=True):
            value.simple_value = number
        data: bytes = event.SerializeToString()
        return data

    def rewind(self, record: Rewind) -> bytes:
        """Has TensorBoard forget what stands beyond the step, as a `purge_step` does."""
        log = SessionLog(status=SessionLog.START)
        event = Event(wall_time=record.time / 1e9, step=record.step + 1, session_log=log)
        data: bytes = event.SerializeToString()
        return data

    def _make(self, names: tuple[str, ...]) -> tuple[Event, list[Summary.Value]]:
        event = Event(summary=Summary(value=[Summary.Value(tag=name) for name in names]))
        made = event, list(event.summary.value)
        if len(self._made) < _MOST_COMBINATIONS:
            self._made[names] = made
        return made


def frame(data: bytes) -> bytes:
    """The data as one TFRecord."""
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CRC.pack(_masked_crc(length)), data, _CRC.pack(_masked_crc(data))))


def read_events(path: Path) -> Iterator[tuple[Event, int]]:
    """The whole events of a file, each with the byte after it, up to the first that is torn."""
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
            yield Event.FromString(data), end
            start = end


def _is_hparams(event: Event) -> bool:
    return any(value.metadata.plugin_data.plugin_name == "hparams" for value in event.summary.value)


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF

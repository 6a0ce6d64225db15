"""The `File` medium."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from metricbus._common.media_base import (
    EncodeContext,
    EncodeJob,
    MediaValue,
    as_path,
    check_file,
    check_text,
)
from metricbus._common.media_records import FileRecord
from metricbus._journal.media_files import make_file_ref


class File(MediaValue):
    """A reference to a file, such as a checkpoint: its path, size in bytes and SHA-256.

    A background thread reads the file; with `copy=True`, it copies the file into the run folder. Do
    not change the file until `flush()` has returned. If it changes before it is read, the record is
    dropped: a warning reports this, and `bus.stats().dropped` counts it.

    `log()` raises `TypeError` or `ValueError`, naming the metric, unless `path` is the path of an
    existing regular file.
    """

    def __init__(self, path: str | os.PathLike[str], *, copy: bool = False) -> None:
        self._path = path
        self._copy = copy

    def _capture(self, name: str) -> EncodeJob:
        path = as_path(self._path)
        if path is None:
            raise TypeError(f"metric {name!r}: File() requires a path, not {self._path!r:.80}")
        status = check_file(name, path)
        check_text(name, "the path", str(path))
        version = status.st_size, status.st_mtime_ns
        return EncodeJob(0, partial(_encode, path, version, self._copy))


def _encode(path: Path, version: tuple[int, int], copy: bool, context: EncodeContext) -> FileRecord:
    file = context.copy("files", path) if copy else make_file_ref(path, str(path))
    status = os.stat(path)
    if (status.st_size, status.st_mtime_ns) != version:
        raise ValueError(f"{path} has changed since it was logged, before it could be read")
    return context.record(FileRecord, file=file, origin=str(path), copied=copy)

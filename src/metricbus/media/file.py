"""`File`: a checkpoint, or anything else that lies in a file."""

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
from metricbus._journal.media_files import ref_of


class File(MediaValue):
    """A file: where it lies, how large it is, and its sha256, found out in the background.

    With `copy=True` it is copied into the run's folder, so that it may change afterwards. If it
    changes before that is done, it is not logged, and the counts say so.
    """

    def __init__(self, path: str | os.PathLike[str], *, copy: bool = False) -> None:
        self._path = path
        self._copy = copy

    def _capture(self, name: str) -> EncodeJob:
        """Checks that the file is there."""
        path = as_path(self._path)
        if path is None:
            raise TypeError(f"metric {name!r}: File() takes a path, not {self._path!r:.80}")
        found = check_file(name, path)
        check_text(name, "the path", str(path))
        state = found.st_size, found.st_mtime_ns
        return EncodeJob(0, partial(_encode, path, state, self._copy))


def _encode(path: Path, state: tuple[int, int], copy: bool, work: EncodeContext) -> FileRecord:
    file = work.copy("files", path) if copy else ref_of(path, str(path))
    now = os.stat(path)
    if (now.st_size, now.st_mtime_ns) != state:
        raise ValueError(f"{path} was changed after it was logged; copies take a moment")
    return work.record(FileRecord, file=file, origin=str(path), copied=copy)

"""Append-only files whose changes are committed or rolled back together."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from metricbus._common.files import AppendFile
from metricbus.errors import RecordsLostError

_log = logging.getLogger("metricbus.sinks.csv")

_MAX_OPEN_FILES = 16


class AppendTransaction:
    """The append-only files of one folder, named by their relative paths.

    `lengths` maps each path to its committed length in bytes. When a file is opened for the first
    time, everything beyond that length is truncated. Only a few files are open at a time.
    """

    def __init__(self, folder: Path, lengths: Mapping[str, int]) -> None:
        self.lengths = dict(lengths)
        self._folder = folder
        self._open_files: OrderedDict[str, AppendFile] = OrderedDict()
        self._verified: set[str] = set()
        self._uncommitted: dict[str, int] = {}  # path -> committed length

    def append(self, path: str, data: bytes, header: bytes) -> None:
        """Append the data to a file; a new file starts with the header."""
        file = self.file(path)
        self._uncommitted.setdefault(path, file.length)
        file.append(data if file.length else header + data)
        self.lengths[path] = file.length

    def file(self, path: str) -> AppendFile:
        """Return the file, opened for appending."""
        file = self._open_files.get(path)
        if file is None:
            file = self._open_files[path] = self._open(path)
            if len(self._open_files) > _MAX_OPEN_FILES:
                _, oldest = self._open_files.popitem(last=False)
                oldest.close()
        self._open_files.move_to_end(path)
        return file

    def _open(self, path: str) -> AppendFile:
        absolute = self._folder / path
        absolute.parent.mkdir(parents=True, exist_ok=True)
        file = AppendFile(absolute, shared=True)
        length = self.lengths.get(path, 0)
        try:
            if file.length != length and path in self._verified:
                raise RecordsLostError(f"{file.path} was modified by another process")
            if file.length > length:
                file.truncate(length)
            elif file.length < length:
                _log.warning("%s was truncated or replaced; appending to its end", file.path)
        except BaseException:
            file.close()
            raise
        self._verified.add(path)
        self.lengths[path] = file.length
        return file

    def commit(self) -> None:
        """Keep everything that was appended since the last commit."""
        self._uncommitted.clear()

    def rollback(self) -> None:
        """Remove everything that was appended since the last commit.

        Raises `RecordsLostError` if a file cannot be truncated.
        """
        try:
            for path, length in self._uncommitted.items():
                if file := self._open_files.pop(path, None):
                    file.close()
                os.truncate(self._folder / path, length)
                self.lengths[path] = length
                if not length:
                    os.unlink(self._folder / path)
        except OSError as error:
            raise RecordsLostError(f"cannot truncate {self._folder / path}: {error}") from error
        finally:
            self._uncommitted.clear()

    def close(self) -> None:
        """Close all files; closing again has no effect."""
        for file in self._open_files.values():
            file.close()
        self._open_files.clear()

"""Media files of a run: written once, atomically, under safe names, and verified when read.

A file name consists of the harmless characters of the metric name, a hash of the metric name, the
step, the segment and a running number. Names therefore cannot leave the folder, be hidden or
collide, and no two processes of a run write the same file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from io import BufferedReader
from pathlib import Path

import msgspec

from metricbus._common.files import replacing
from metricbus._common.media_records import Cell, ChartRecord, FileRef, TableRecord, decode_rows
from metricbus._common.sink_urls import short_hash
from metricbus.errors import MediaError

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_READABLE = 60


class MediaFolder:
    """The media files of the run in `folder`, verified on each access.

    All methods raise `MediaError` if a file is missing, or differs from what was logged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, ref: FileRef) -> Path:
        """Return the path of a file, after comparing the file's size and SHA-256."""
        path = self._folder / ref.path
        with self._open(ref) as file:
            _verify(path, os.fstat(file.fileno()).st_size, _sha256(file), ref)
        return path

    def read(self, ref: FileRef) -> bytes:
        """Return the content of a file."""
        with self._open(ref) as file:
            content = file.read()
        sha256 = hashlib.sha256(content).hexdigest()
        _verify(self._folder / ref.path, len(content), sha256, ref)
        return content

    def text(self, ref: FileRef) -> str:
        """Return the content of a text file."""
        return self.read(ref).decode()

    def rows(self, record: TableRecord | ChartRecord) -> list[list[Cell]]:
        """Return the rows of a table's part, or of a chart's data."""
        ref = record.file if isinstance(record, TableRecord) else record.data
        try:
            return decode_rows(self.read(ref))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MediaError(f"{ref.path} is not a table: {error}") from error

    def _open(self, ref: FileRef) -> BufferedReader:
        path = self._folder / ref.path
        # A journal from elsewhere may contain any path. Files logged without a copy are absolute.
        if not os.path.isabs(ref.path) and not path.resolve().is_relative_to(
            self._folder.resolve()
        ):
            raise MediaError(f"{ref.path} is outside of the run folder")
        try:
            return open(path, "rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MediaError(f"{path} is missing; it was logged with {ref.size:,} bytes") from None


class MediaWriter:
    """Writer of the media files of one segment, for the run in `folder`; not thread-safe."""

    def __init__(self, folder: Path, segment: str) -> None:
        self.folder = folder
        self._segment = segment
        self._number = 0

    def save(self, kind: str, name: str, step: int, suffix: str, content: bytes) -> FileRef:
        """Write a new file, atomically, and return its reference."""
        path = self._new_path(kind, name, step, suffix)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return FileRef(path.relative_to(self.folder).as_posix(), len(content), sha256)

    def copy(self, kind: str, name: str, step: int, source: Path) -> FileRef:
        """Copy a file and return the copy's reference.

        Raises `ValueError` if the file changes while it is being copied.
        """
        path = self._new_path(kind, name, step, _UNSAFE.sub("_", source.suffix))
        with replacing(path) as temporary:
            before = os.stat(source)
            shutil.copyfile(source, temporary)
            after = os.stat(source)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise ValueError(f"{source} changed while it was being copied")
            return make_file_ref(temporary, path.relative_to(self.folder).as_posix())

    def _new_path(self, kind: str, name: str, step: int, suffix: str) -> Path:
        self._number += 1
        folder = self.folder / "media" / kind / safe_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{step}-{self._segment}.{self._number}{suffix}"


def safe_name(name: str) -> str:
    """Return a folder name for a metric name: readable, and different for each name."""
    readable = _UNSAFE.sub("_", name).lstrip("._-")[:_MAX_READABLE]
    return f"{readable or 'medium'}-{short_hash(name)}"


def make_file_ref(source: Path, path: str) -> FileRef:
    """Return a reference to the content of `source` under the given `path`."""
    with open(source, "rb") as file:
        return FileRef(path, os.fstat(file.fileno()).st_size, _sha256(file))


def _verify(path: Path, size: int, sha256: str, ref: FileRef) -> None:
    """Raise `MediaError` if size or hash differ from those in the reference."""
    if (size, sha256) != (ref.size, ref.sha256):
        raise MediaError(
            f"{path} has changed since it was logged: it has {size:,} bytes with SHA-256 "
            f"{sha256[:12]}…, but was logged with {ref.size:,} bytes and {ref.sha256[:12]}…"
        )


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()

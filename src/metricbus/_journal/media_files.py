"""The files of a run's media: written once, atomically, under safe names; read with a check.

A file's name is made of the metric's name, as far as it is harmless, a hash of it, the step, the
segment and a running number. So no name leads out of the folder, hides, or meets another one's, and
no two processes of a run write the same file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

import msgspec

from metricbus._common.media_records import Cell, ChartRecord, FileRef, TableRecord, decode_rows
from metricbus._common.sink_urls import short_hash
from metricbus.errors import MediaError

_HARMLESS = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 60
_BLOCK = 1 << 20


class MediaFolder:
    """Reads the media of the run in `folder`; `MediaError` for what is missing or was changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, ref: FileRef) -> Path:
        """Where the file is, once it is seen to be what was logged."""
        path = self._folder / ref.path
        with self._open(ref) as file:
            _compare(path, os.fstat(file.fileno()).st_size, _sha256(file), ref)
        return path

    def read(self, ref: FileRef) -> bytes:
        """The file's content, which is read once."""
        with self._open(ref) as file:
            content = file.read()
        sha256 = hashlib.sha256(content).hexdigest()
        _compare(self._folder / ref.path, len(content), sha256, ref)
        return content

    def _open(self, ref: FileRef) -> BinaryIO:
        path = self._folder / ref.path
        inside = os.path.isabs(ref.path) or path.resolve().is_relative_to(self._folder.resolve())
        if not inside:  # a stranger's journal
            raise MediaError(f"{ref.path} leads out of the run's folder")
        try:
            return open(path, "rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MediaError(f"{path} is missing; it was logged with {ref.size:,} bytes") from None

    def text(self, ref: FileRef) -> str:
        """The content of a text."""
        return self.read(ref).decode()

    def rows(self, record: TableRecord | ChartRecord) -> list[list[Cell]]:
        """A table's part, or the data of a chart."""
        ref = record.file if isinstance(record, TableRecord) else record.data
        try:
            return decode_rows(self.read(ref))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MediaError(f"{ref.path} is no table: {error}") from error


class MediaWriter:
    """Writes the media of one segment of the run in `folder`; for one thread."""

    def __init__(self, folder: Path, segment: str) -> None:
        self.folder = folder
        self._segment = segment
        self._number = 0

    def save(self, kind: str, name: str, step: int, suffix: str, content: bytes) -> FileRef:
        """Writes a file that is there as a whole or not at all."""
        path = self._new(kind, name, step, suffix)
        temporary = _beside(path)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return self._ref(path, len(content), hashlib.sha256(content).hexdigest())

    def copy(self, kind: str, name: str, step: int, source: Path) -> FileRef:
        """Copies a file; it must not change meanwhile (`ValueError`)."""
        path = self._new(kind, name, step, _HARMLESS.sub("_", source.suffix))
        temporary = _beside(path)
        try:
            before = os.stat(source)
            shutil.copyfile(source, temporary)
            after = os.stat(source)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise ValueError(f"{source} was changed while it was being copied")
            ref = make_file_ref(temporary, path.relative_to(self.folder).as_posix())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return ref

    def _new(self, kind: str, name: str, step: int, suffix: str) -> Path:
        self._number += 1
        folder = self.folder / "media" / kind / safe_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{step}-{self._segment}.{self._number}{suffix}"

    def _ref(self, path: Path, size: int, sha256: str) -> FileRef:
        return FileRef(path.relative_to(self.folder).as_posix(), size, sha256)


def safe_name(name: str) -> str:
    """The name as that of a folder: readable, and another one for every name."""
    readable = _HARMLESS.sub("_", name).lstrip("._-")[:_LONGEST]
    return f"{readable or 'medium'}-{short_hash(name)}"


def make_file_ref(source: Path, path: str) -> FileRef:
    """The reference to a file, under the path that is given."""
    with open(source, "rb") as file:
        return FileRef(path, os.fstat(file.fileno()).st_size, _sha256(file))


def _compare(path: Path, size: int, sha256: str, ref: FileRef) -> None:
    """`MediaError` if the file is not the one that was logged."""
    if (size, sha256) != (ref.size, ref.sha256):
        raise MediaError(
            f"{path} was changed since it was logged: it has {size:,} bytes with sha256 "
            f"{sha256[:12]}…, it had {ref.size:,} with {ref.sha256[:12]}…"
        )


def _sha256(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while block := file.read(_BLOCK):
        found.update(block)
    return found.hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")

"""Files that grow by atomic appends, and small files that are created or replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metricbus.errors import RecordsLostError


class AppendFile:
    """A file with one writer; each `append` takes effect as a whole or not at all.

    When a write fails halfway, for example because the disk is full, the partial data is truncated:
    at once if possible, otherwise before the next append. Data goes straight to the operating
    system, so it survives the death of the process.
    """

    def __init__(self, path: Path, *, new: bool = False, shared: bool = False) -> None:
        """Open `path` for appending; with `new`, raise `FileExistsError` if it exists.

        With `shared`, another process may wrongly believe that it is the only writer; `append` then
        raises `RecordsLostError` if the file has been changed.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags | (os.O_EXCL if new else 0), 0o644)
        self._is_torn = False
        self._is_entry_synced = False  # whether the folder's entry for the file is on disk
        self._shared = shared
        self.path = path
        self.length = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        """Write the data at the end. If it raises `OSError`, none of the data counts."""
        if self._is_torn:
            self.truncate(self.length)
        if self._shared and os.fstat(self._fd).st_size != self.length:
            raise RecordsLostError(f"{self.path} was changed by another process")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            self._is_torn = True
            try:
                self.truncate(self.length)
            except OSError:
                pass  # retried before the next append
            raise
        self.length += len(data)

    def sync(self) -> None:
        """Force the file, and its name in the folder, to disk."""
        os.fsync(self._fd)
        if not self._is_entry_synced:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._is_entry_synced = True

    def truncate(self, length: int) -> None:
        """Truncate the file to `length` bytes."""
        os.ftruncate(self._fd, length)
        self.length = length
        self._is_torn = False

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` on success and deleted on failure.

    A reader of `path` sees either the old content or the new.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def create_file(path: Path, content: bytes) -> None:
    """Create a small file that is never visible while empty; `FileExistsError` if it exists."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        with open(path, "xb") as file:
            file.write(content)
    finally:
        temporary.unlink()

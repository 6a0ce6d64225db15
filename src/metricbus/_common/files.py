"""Files that grow by whole pieces, and small files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from metricbus.errors import Lost


class AppendFile:
    """A file with one writer that holds whole pieces: `append` takes effect entirely or not at all.

    When a write fails half-way (a full disk), what got in is cut off again, at once if that can be
    done and before the next piece if not. Pieces go straight to the operating system, so they
    survive the death of the process.
    """

    def __init__(self, path: Path, *, new: bool = False, shared: bool = False) -> None:
        """Opens `path` for appending; with `new` it must not be there (`FileExistsError`).

        A `shared` file may have been changed by another process that thought that it was the only
        writer: then `append` raises `Lost`.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags | (os.O_EXCL if new else 0), 0o644)
        self._torn = False
        self._named = False  # whether the folder's entry is on the disk
        self._shared = shared
        self.path = path
        self.length = os.fstat(self._fd).st_size

    def append(self, piece: bytes) -> None:
        """Writes the piece at the end. `OSError`: nothing of it counts."""
        if self._torn:
            self.truncate(self.length)
        if self._shared and os.fstat(self._fd).st_size != self.length:
            raise Lost(f"{self.path} was changed by another process")
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            self._torn = True
            try:
                self.truncate(self.length)
            except OSError:
                pass  # tried again before the next piece
            raise
        self.length += len(piece)

    def sync(self) -> None:
        """Forces all of it onto the disk, and its name in the folder."""
        os.fsync(self._fd)
        if not self._named:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._named = True

    def truncate(self, length: int) -> None:
        """Cuts off what stands beyond `length`."""
        os.ftruncate(self._fd, length)
        self.length = length
        self._torn = False

    def close(self) -> None:
        """Lets go of the file; closing again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def create_file(path: Path, content: bytes) -> None:
    """Makes a small file that nobody ever sees empty; `FileExistsError` if there is one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with open(path, "xb") as file:
            file.write(content)
    finally:
        temporary.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Writes a small file so that a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)

"""Files that grow together: what one `write` appends to them counts in all of them or in none."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from metricbus._common.files import AppendFile
from metricbus.errors import Lost

_log = logging.getLogger("metricbus.sinks.csv")

_MOST_OPEN = 16


class GrowingFiles:
    """The growing files of a folder, by their paths in it; few of them are open at a time.

    `lengths` are the bytes that count of each. What stands in a file beyond them when it is first
    opened is cut off.
    """

    def __init__(self, folder: Path, lengths: Mapping[str, int]) -> None:
        self.lengths = dict(lengths)
        self._folder = folder
        self._open: OrderedDict[str, AppendFile] = OrderedDict()
        self._known: set[str] = set()  # whose length was seen to be right, or made so
        self._before: dict[str, int] = {}  # the lengths since `keep`

    def append(self, path: str, piece: bytes, header: bytes) -> None:
        """Appends the piece; after the header, if the file is new."""
        file = self.file(path)
        self._before.setdefault(path, file.length)
        file.append(piece if file.length else header + piece)
        self.lengths[path] = file.length

    def file(self, path: str) -> AppendFile:
        """The file, opened."""
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = self._opened(path)
            if len(self._open) > _MOST_OPEN:
                _, oldest = self._open.popitem(last=False)
                oldest.close()
        self._open.move_to_end(path)
        return file

    def _opened(self, path: str) -> AppendFile:
        whole = self._folder / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        file = AppendFile(whole, shared=True)
        try:
            counted = self.lengths.get(path, 0)
            if file.length != counted:
                self._mend(file, counted, known=path in self._known)
        except BaseException:
            file.close()
            raise
        self._known.add(path)
        self.lengths[path] = file.length
        return file

    def _mend(self, file: AppendFile, counted: int, *, known: bool) -> None:
        if known:
            raise Lost(f"{file.path} was changed by another process")
        if file.length < counted:
            _log.warning("%s has been cut or replaced; going on at its end", file.path)
        else:
            file.cut(counted)

    def keep(self) -> None:
        """What was appended counts."""
        self._before.clear()

    def undo(self) -> None:
        """Takes back what was appended since `keep`; `Lost` if that cannot be done."""
        try:
            for path, length in self._before.items():
                if file := self._open.pop(path, None):
                    file.close()
                os.truncate(self._folder / path, length)
                self.lengths[path] = length
                if not length:
                    os.unlink(self._folder / path)
        except OSError as error:
            raise Lost(f"{self._folder / path} cannot be cut: {error}") from error
        finally:
            self._before.clear()

    def close(self) -> None:
        """Lets go of the files; closing again does nothing."""
        for file in self._open.values():
            file.close()
        self._open.clear()

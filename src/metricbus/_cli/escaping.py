"""Escaping for text from runs, so that it cannot control the terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from metricbus.sinks.media_text import printable

if TYPE_CHECKING:
    from typing_extensions import Buffer


def path_text(path: Path) -> str:
    """Return the path as text that can be encoded; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def escape_json(encoded: bytes) -> str:
    """Return the JSON document with non-printable characters in its strings escaped.

    JSON allows some of them unescaped: DEL, C1 control characters, and bidirectional controls.
    """
    text = encoded.decode()
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


class EscapingWriter(io.RawIOBase):
    """A binary file that writes UTF-8 text to a terminal, with non-printable characters escaped."""

    def __init__(self, terminal: IO[bytes]) -> None:
        super().__init__()
        self._terminal = terminal

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        """Write the data, which must not end within a character."""
        lines = bytes(data).decode(errors="replace").replace("\r\n", "\n").split("\n")
        self._terminal.write("\n".join(map(printable, lines)).encode())
        return len(bytes(data))

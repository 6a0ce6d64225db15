"""What runs call things is data: before it is shown, it is made unable to steer the terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer


def printable(value: Any) -> str:
    """The value as text, on one line: what would move the cursor is spelled out."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def path_text(path: Path) -> str:
    """The path as text that can be encoded; bytes in it that are no UTF-8 are spelled out."""
    return os.fsencode(path).decode(errors="backslashreplace")


def json_text(encoded: bytes) -> str:
    """The same JSON, with escapes for the characters that do not print.

    JSON itself leaves some as they are: DEL, the control characters of ISO 8859, changes of the
    direction of writing. All of them stand within its strings.
    """
    text = encoded.decode()
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


class Screen(io.RawIOBase):
    """A terminal to which a file is written: its text is shown, and cannot steer it."""

    def __init__(self, terminal: IO[bytes]) -> None:
        super().__init__()
        self._terminal = terminal

    def writable(self) -> bool:
        """As any file that is written."""
        return True

    def write(self, data: Buffer) -> int:
        """Writes whole characters in UTF-8."""
        lines = bytes(data).decode(errors="replace").replace("\r\n", "\n").split("\n")
        self._terminal.write("\n".join(map(printable, lines)).encode())
        return len(bytes(data))

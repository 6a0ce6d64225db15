"""The whole lines of a file, read from its end: however long it is, only the end is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 1 << 16


def lines_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines before the byte `end`, at which one has ended; the last one first."""
    rest = b""
    place = end - 1  # without the last newline
    block = _BLOCK
    while place > 0:
        start = max(0, place - block)
        file.seek(start)
        rest, *lines = (file.read(place - start) + rest).split(b"\n")
        yield from reversed(lines)
        place = start
        block = _BLOCK if lines else 2 * block  # a long line is put together from a few pieces
    if end > 0:
        yield rest


def end_of_last_line(file: BinaryIO) -> int:
    """The byte after the last newline; 0 if there is none."""
    place = file.seek(0, os.SEEK_END)
    while place > 0:
        start = max(0, place - _BLOCK)
        file.seek(start)
        found = file.read(place - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        place = start
    return 0

"""Reading the whole lines of a file from its end, without reading the rest of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 1 << 16


def lines_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield the lines before offset `end`, the last one first; `end` must follow a newline."""
    rest = b""
    position = end - 1  # without the last newline
    block = _BLOCK
    while position > 0:
        start = max(0, position - block)
        file.seek(start)
        rest, *lines = (file.read(position - start) + rest).split(b"\n")
        yield from reversed(lines)
        position = start
        # Doubling keeps the cost linear for a line that is longer than a block.
        block = _BLOCK if lines else 2 * block
    if end > 0:
        yield rest


def end_of_last_line(file: BinaryIO) -> int:
    """Return the offset after the last newline; 0 if there is none."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - _BLOCK)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0

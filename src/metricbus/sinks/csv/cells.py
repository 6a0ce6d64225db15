"""CSV encoding: RFC 4180 with CR LF line ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


def safe_cell(text: str) -> str:
    """Return the text, with an apostrophe in front if a spreadsheet might evaluate it."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def seconds(nanoseconds: int) -> str:
    """Return a time in seconds as an exact decimal number."""
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"


def lines(rows: Iterable[Sequence[str]]) -> bytes:
    """Encode the rows as lines of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def quoted(text: str) -> str:
    """Return the text as one safe cell, quoted if necessary."""
    return lines([[safe_cell(text)]]).decode().removesuffix("\r\n")

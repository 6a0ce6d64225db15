"""How CSV files are spelled: RFC 4180, lines end in CR LF."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


def safe_cell(text: str) -> str:
    """The text as a cell that a spreadsheet does not run."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def seconds(nanoseconds: int) -> str:
    """A time in seconds, exactly."""
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"


def lines(rows: Iterable[Sequence[str]]) -> bytes:
    """The rows as lines of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()

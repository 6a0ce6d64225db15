"""Makes names displayable: a run can use any text of any length as a name."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def shorten(text: str, max_columns: int = 60) -> str:
    """Return the text on one line, shortened in the middle to `max_columns` terminal columns.

    Unprintable characters are replaced. Wide characters, such as Chinese ones, take two columns.
    More of the end is kept than of the start, because ids differ at their ends.
    """
    line = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    if _width(line) <= max_columns:
        return line
    end_columns = (max_columns - 1) * 2 // 3
    start = _take_columns(line, max_columns - 1 - end_columns)
    return start + "…" + _take_columns(reversed(line), end_columns)[::-1]


def _take_columns(characters: Iterable[str], columns: int) -> str:
    """Return as many of the first characters as fit into `columns`."""
    kept = ""
    for character in characters:
        columns -= _width(character)
        if columns < 0:
            break
        kept += character
    return kept


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)

"""Names as they can be shown: what a run calls something is data of any length."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def shown(text: str, longest: int = 60) -> str:
    """On one line, and shortened in its middle: ids differ at their ends, names at both.

    `longest` is in columns of a terminal, of which Chinese, say, takes two a character.
    """
    plain = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    if _columns(plain) <= longest:
        return plain
    tail = (longest - 1) * 2 // 3
    return _first(plain, longest - 1 - tail) + "…" + _first(reversed(plain), tail)[::-1]


def _first(letters: Iterable[str], columns: int) -> str:
    """As many of the letters as there is room for."""
    kept = ""
    for letter in letters:
        columns -= _columns(letter)
        if columns < 0:
            break
        kept += letter
    return kept


def _columns(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)

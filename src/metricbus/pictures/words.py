"""Names as they can be shown: what a run calls something is data of any length."""

from __future__ import annotations


def shown(text: str, longest: int = 60) -> str:
    """On one line, and shortened in its middle: ids differ at their ends, names at both."""
    plain = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    if len(plain) <= longest:
        return plain
    tail = (longest - 1) * 2 // 3
    return plain[: longest - 1 - tail] + "…" + plain[len(plain) - tail :]

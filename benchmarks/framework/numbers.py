"""Numbers for people: three digits that count, thousands separated, units as they are written."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.framework.harness import Figure, Unit, ratio

MOST_DIGITS = 15


def readable(value: float, digits: int = 3) -> str:
    """`1,230,000`, `407`, `0.0123`; so many digits count, the zeros at the end too."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")  # first, as 9.996 becomes 10.0 and not 10.00
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(decimals, 0)}f}"


def in_unit(value: float, unit: Unit, digits: int = 3) -> str:
    """As it stands below a head that names the unit: what is counted is never rounded."""
    if unit == "values" and float(value).is_integer():
        return f"{value:,.0f}"
    return times(value) if unit == "x" else readable(value, digits)


def with_unit(number: str, unit: Unit) -> str:
    """As it stands alone: `20 ms`, `1.05×`."""
    return f"{number}×" if unit == "x" else f"{number} {unit}"


def times(value: float) -> str:
    """A ratio; near 1, a part in a thousand is of interest."""
    return f"{value:.3f}" if 0.9 <= value < 1.1 else readable(value)


def beside_text(figure: Figure, beside: Figure | None) -> str:
    """How many times the other one it is, if there is one that anything can be divided by."""
    return times(ratio(figure, beside)) if beside is not None and all(beside.samples) else ""


def place(value: float) -> str:
    """A place on an axis: `10,000,000`, `0.00001`."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return np.format_float_positional(float(f"{value:.6g}"), trim="-")


def apart(seen: float, limit: float) -> tuple[str, str]:
    """Both, the seen one with as many digits as show that it differs: 1.0502 is not 1.05."""
    digits = 3
    while seen != limit and digits < MOST_DIGITS and _same(seen, limit, digits):
        digits += 1
    return readable(seen, digits), f"{limit:,.{MOST_DIGITS}g}"


def _same(one: float, other: float, digits: int) -> bool:
    return readable(one, digits) == readable(other, digits)

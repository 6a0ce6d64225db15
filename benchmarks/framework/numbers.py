"""Number formatting: three significant digits, thousands separators, and units."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.framework.harness import Figure, Unit, ratio

MAX_DIGITS = 15


def readable(value: float, digits: int = 3) -> str:
    """Format a number with this many significant digits: `1,230,000`, `407`, `0.0123`.

    Trailing zeros are kept.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")  # rounding first turns 9.996 into 10.0, not 10.00
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(decimals, 0)}f}"


def in_unit(value: float, unit: Unit, digits: int = 3) -> str:
    """Format a number for a column whose header names the unit; counts are never rounded."""
    if unit == "values" and float(value).is_integer():
        return f"{value:,.0f}"
    return format_ratio(value) if unit == "x" else readable(value, digits)


def with_unit(number: str, unit: Unit) -> str:
    """Append the unit: `20 ms`, `1.05×`."""
    return f"{number}×" if unit == "x" else f"{number} {unit}"


def format_ratio(value: float) -> str:
    """Format a ratio, with three decimals if it is close to 1."""
    return f"{value:.3f}" if 0.9 <= value < 1.1 else readable(value)


def ratio_text(figure: Figure, baseline: Figure | None) -> str:
    """Format the ratio to the baseline.

    The text is empty if there is no baseline, or if the baseline contains a zero.
    """
    if baseline is None or not all(baseline.samples):
        return ""
    return format_ratio(ratio(figure, baseline))


def format_tick(value: float) -> str:
    """Format a position on an axis: `10,000,000`, `0.00001`."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return np.format_float_positional(float(f"{value:.6g}"), trim="-")


def distinguishable(measured: float, limit: float) -> tuple[str, str]:
    """Format both numbers, with enough digits in the first to tell it from the limit.

    For example, 1.0502 is not rounded to a limit of 1.05.
    """
    digits = 3
    while measured != limit and digits < MAX_DIGITS and _look_equal(measured, limit, digits):
        digits += 1
    return readable(measured, digits), f"{limit:,.{MAX_DIGITS}g}"


def _look_equal(first: float, second: float, digits: int) -> bool:
    return readable(first, digits) == readable(second, digits)

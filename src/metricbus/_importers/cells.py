"""What stands in the cells of CSV files: numbers, steps, times."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from metricbus._common.records import Number
from metricbus._common.validation import INT_MAX, to_number

_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_WORDS = {"true": 1, "false": 0}
_LATEST = 1 << 63


def number_in(cell: str) -> Number:
    """An integer where it is one, exactly; else the float64; `ValueError` for anything else.

    NaN and the infinities are taken in any usual spelling, and true and false as 1 and 0.
    """
    if _WHOLE.fullmatch(cell):
        return to_number("the cell", int(cell))
    if "_" in cell:  # Python's own spelling of large numbers, and nobody else's
        raise ValueError(f"{cell!r:.40} is no number")
    word = _WORDS.get(cell.lower())
    return float(cell) if word is None else word


def step_in(cell: str) -> int:
    """A whole number from 0 to 2**63 - 1, also as `12.0`; `ValueError` for anything else."""
    if cell.isascii() and cell.isdigit():  # nearly always
        found = int(cell)
    else:
        number = number_in(cell)
        found = int(number) if abs(number) < _LATEST else -1
        if found != number:
            raise ValueError(f"{cell!r:.40} is no whole number")
    if not 0 <= found <= INT_MAX:
        raise ValueError(f"{cell!r:.40} is no whole number from 0 on")
    return found


def time_in(cell: str) -> int:
    """Nanoseconds since 1970-01-01 UTC, of seconds since then or of a date in ISO 8601.

    A date without a zone is in UTC. Raises `ValueError` for anything else.
    """
    try:
        nanoseconds = Decimal(cell) * 10**9
    except InvalidOperation:
        date = datetime.fromisoformat(cell)
        moment = date if date.tzinfo else date.replace(tzinfo=UTC)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        microseconds = (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
        nanoseconds = Decimal(microseconds * 1000)
    if not nanoseconds.is_finite() or not 0 <= nanoseconds < _LATEST:
        raise ValueError(f"{cell!r:.40} is no time after 1970")
    return int(nanoseconds)

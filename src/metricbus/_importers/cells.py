"""Parses the cells of CSV files: numbers, steps, times."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from metricbus._common.records import Number
from metricbus._common.validation import INT_MAX, to_number

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_BOOLEANS = {"true": 1, "false": 0}


def parse_number(cell: str) -> Number:
    """Return an int for an integer, exactly, and a float for any other number.

    Accepts the usual spellings of NaN and the infinities, and true and false as 1 and 0.
    Raises `ValueError` for anything else.
    """
    if _INTEGER.fullmatch(cell):
        return to_number("the cell", int(cell))
    if "_" in cell:
        # float() accepts the underscores of Python literals, which no other program writes.
        raise ValueError(f"{cell!r:.40} is not a number")
    boolean = _BOOLEANS.get(cell.lower())
    return float(cell) if boolean is None else boolean


def parse_step(cell: str) -> int:
    """Return an integer from 0 to 2**63 - 1; `12.0` is accepted too.

    Raises `ValueError` for anything else.
    """
    if cell.isascii() and cell.isdigit():  # the usual case, without parsing a float
        step = int(cell)
    else:
        number = parse_number(cell)
        step = int(number) if abs(number) <= INT_MAX else -1
        if step != number:
            raise ValueError(f"{cell!r:.40} is not an integer")
    if not 0 <= step <= INT_MAX:
        raise ValueError(f"{cell!r:.40} is not an integer from 0 to {INT_MAX}")
    return step


def parse_time(cell: str) -> int:
    """Convert seconds since 1970-01-01 UTC, or an ISO 8601 date, to nanoseconds since then.

    A date without a time zone is in UTC. Raises `ValueError` for anything else.
    """
    try:
        nanoseconds = Decimal(cell) * 10**9
    except InvalidOperation:
        date = datetime.fromisoformat(cell)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        elapsed = date - datetime(1970, 1, 1, tzinfo=UTC)
        microseconds = (elapsed.days * 86_400 + elapsed.seconds) * 10**6 + elapsed.microseconds
        nanoseconds = Decimal(microseconds * 1000)
    if not nanoseconds.is_finite() or not 0 <= nanoseconds < INT_MAX + 1:
        raise ValueError(f"{cell!r:.40} is not a time from 1970 to 2262")
    return int(nanoseconds)

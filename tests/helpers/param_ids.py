"""Names for the cases of a test."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """The value's `repr` without its address, which is another in each process that collects."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

"""Ids for parametrized tests."""

from __future__ import annotations

import re


def repr_without_address(value: object) -> str:
    """Return the `repr` without addresses, which differ between pytest-xdist workers."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

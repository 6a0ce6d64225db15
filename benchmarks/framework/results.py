"""What was measured, as it is kept in `results.json`: case by case, each with where and when.

A case that is measured again replaces what was there of it and leaves the others alone. So a file
may come from several runs; each case tells its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from benchmarks.framework.harness import Result
from benchmarks.framework.machine import Machine, Moment

_NUMBERS = re.compile(rb"\[\s+([^\[\]{}\"]+?)\s+\]")  # a list of nothing but numbers


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one case gave, where, when and how long it took; `missing` says which peers were not."""

    case: str
    results: list[Result]
    machine: Machine
    date: str
    seconds: float
    before: Moment
    after: Moment
    commit: str = ""
    quick: bool = False
    missing: dict[str, str] = {}


def load(path: Path) -> list[Measured]:
    """What the file has; nothing if there is none."""
    if not path.exists():
        return []
    return msgspec.json.decode(path.read_bytes(), type=list[Measured])


def save(path: Path, measured: Sequence[Measured]) -> None:
    """Replaces the file whole. Samples stand on one line, so that a change of one is one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(measured), indent=1)
    text = _NUMBERS.sub(lambda found: b"[" + b" ".join(found[1].split()) + b"]", text)
    part = path.with_suffix(".part")
    part.write_bytes(text + b"\n")
    part.replace(path)


def merged(
    old: Iterable[Measured], new: Iterable[Measured], order: Sequence[str]
) -> list[Measured]:
    """The new ones in place of the old ones, in this order; what is not in it has had its day."""
    by_case = {one.case: one for one in [*old, *new]}
    return [by_case[case] for case in order if case in by_case]

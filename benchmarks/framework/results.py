"""Storage of measurements in `results.json`, one entry per case.

A new measurement of a case replaces its previous entry and leaves the others unchanged, so the
entries of a file may come from different runs. Each entry records its own machine and date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from benchmarks.framework.harness import Result
from benchmarks.framework.machine import LoadSample, Machine

_NUMBERS = re.compile(rb"\[\s+([^\[\]{}\"]+?)\s+\]")  # a list that contains only numbers


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """Results of one case, with the conditions of the measurement.

    `seconds` is the duration of the case. `before` and `after` describe the load of the machine.
    `missing` maps peers that could not be measured to the reason.
    """

    case: str
    results: list[Result]
    machine: Machine
    date: str
    seconds: float
    before: LoadSample
    after: LoadSample
    commit: str = ""
    quick: bool = False
    missing: dict[str, str] = {}


def load(path: Path) -> list[Measured]:
    """Read the file; return an empty list if it does not exist."""
    if not path.exists():
        return []
    return msgspec.json.decode(path.read_bytes(), type=list[Measured])


def save(path: Path, measured: Sequence[Measured]) -> None:
    """Replace the file atomically.

    The samples of a figure share one line, so that a changed figure is a changed line in a diff.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(measured), indent=1)
    text = _NUMBERS.sub(lambda found: b"[" + b" ".join(found[1].split()) + b"]", text)
    part = path.with_suffix(".part")
    part.write_bytes(text + b"\n")
    part.replace(path)


def merged(
    old: Iterable[Measured], new: Iterable[Measured], order: Sequence[str]
) -> list[Measured]:
    """Replace old entries by new ones, sort by `order`, and drop cases that `order` lacks."""
    by_case = {one.case: one for one in [*old, *new]}
    return [by_case[case] for case in order if case in by_case]

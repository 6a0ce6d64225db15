"""Which series somebody wants to see: globs over names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import msgspec

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import Number, Scalars

_RANK = re.compile(r"^rank\d+/")

R = TypeVar("R", Scalars, MediumRecord)


class NameFilter:
    """The names that one of the globs fits; without globs, all.

    A glob speaks of a name on all ranks, or with `rank1/` in front on that one, as for sinks.
    """

    def __init__(self, globs: Sequence[str] = ()) -> None:
        self.globs = globs
        self._known: dict[str, bool] = {}

    def fits(self, name: str) -> bool:
        """Whether the series is wanted."""
        known = self._known.get(name)
        if known is None:
            names = {name, _RANK.sub("", name)}
            known = not self.globs or any(
                fnmatchcase(one, glob) for one in names for glob in self.globs
            )
            self._known[name] = known
        return known

    def part_of(self, record: R) -> R | None:
        """The record with the wanted names alone; None if it has none."""
        if isinstance(record, MediumRecord):
            return record if self.fits(record.name) else None
        values: dict[str, Number] = {n: v for n, v in record.values.items() if self.fits(n)}
        if len(values) == len(record.values):
            return record
        return msgspec.structs.replace(record, values=values) if values else None

    def found(self) -> list[str]:
        """The wanted names that came so far, in the order in which they first did."""
        return [name for name, fits in self._known.items() if fits]

    def unfound(self) -> str:
        """Of globs that no name has fitted so far: a sentence, with names that are near."""
        near: list[str] = []
        for glob in self.globs:
            near += difflib.get_close_matches(glob, list(self._known), n=3, cutoff=0.5)
        asked = " or ".join(repr(glob) for glob in self.globs)
        there = list(dict.fromkeys(near)) or list(self._known)[:10]
        more = "; did you mean " if near else "; there are: "
        return f"no series is called {asked}" + (more + ", ".join(there) if there else "")

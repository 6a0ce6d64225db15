"""Which of a row's values a sink wants: `include`, `exclude` and `every`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import product

import msgspec

from metricbus._common.records import Scalars
from metricbus.sinks.base import SinkOptions

_RANK = re.compile(r"^rank\d+/")


class RowFilter:
    """Takes names out of rows. `seen` counts the values of each name and can be carried over."""

    def __init__(self, options: SinkOptions, seen: dict[str, int]) -> None:
        self._options = options
        self._wanted: dict[str, bool] = {}
        self.seen = seen
        self.takes_all = not options.include and not options.exclude and options.every == 1

    def apply(self, row: Scalars) -> Scalars | None:
        """The row with the wanted values alone; None if none is left.

        `every` thins what comes step by step, and not what is given once an epoch.
        """
        if self.takes_all:
            return row
        take = self._wants if row.axis == "epoch" else self._take
        values = {name: value for name, value in row.values.items() if take(name)}
        if len(values) == len(row.values):
            return row
        return msgspec.structs.replace(row, values=values) if values else None

    def takes(self, name: str) -> bool:
        """Whether the medium that comes now under this name is wanted."""
        return self.takes_all or self._take(name)

    def _take(self, name: str) -> bool:
        if not self._wants(name):
            return False
        if self._options.every == 1:
            return True
        times = self.seen.get(name, 0)
        self.seen[name] = (times + 1) % self._options.every
        return times == 0

    def _wants(self, name: str) -> bool:
        wanted = self._wanted.get(name)
        if wanted is None:
            wanted = self._wanted[name] = self._matches(name)
        return wanted

    def _matches(self, name: str) -> bool:
        """A glob speaks of a name on all ranks, or with `rank1/` in front on that one."""
        names = {name, _RANK.sub("", name)}
        include, exclude = self._options.include, self._options.exclude
        return (not include or _any_fits(names, include)) and not _any_fits(names, exclude)


def _any_fits(names: Iterable[str], globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for name, glob in product(names, globs))

"""Selects the values that a sink receives: the options `include`, `exclude` and `every`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import product

import msgspec

from metricbus._common.records import RANK_PREFIX, ScalarRow
from metricbus.sinks.base import SinkOptions


class RowFilter:
    """Removes values from rows.

    `seen` counts the values of each name, modulo `every`. It is saved with the sink's progress, so
    that the selection continues after a restart.
    """

    def __init__(self, options: SinkOptions, seen: dict[str, int]) -> None:
        self._options = options
        self._matched: dict[str, bool] = {}
        self._passes_all = not options.include and not options.exclude and options.every == 1
        self.seen = seen

    def apply(self, row: ScalarRow) -> ScalarRow | None:
        """Return the row with the selected values only, or None if there are none.

        `every` does not apply to rows that are logged once per epoch.
        """
        if self._passes_all:
            return row
        select = self._matches if row.is_per_epoch else self.accepts
        values = {name: value for name, value in row.values.items() if select(name)}
        if len(values) == len(row.values):
            return row
        return msgspec.structs.replace(row, values=values) if values else None

    def accepts(self, name: str) -> bool:
        """Check whether the next value or medium of this name is selected, and count it."""
        if self._passes_all:
            return True
        if not self._matches(name):
            return False
        if self._options.every == 1:
            return True
        count = self.seen.get(name, 0)
        self.seen[name] = (count + 1) % self._options.every
        return count == 0

    def _matches(self, name: str) -> bool:
        matched = self._matched.get(name)
        if matched is None:
            # A pattern matches a name on all ranks, or with a prefix such as `rank1/` on that one.
            names = {name, RANK_PREFIX.sub("", name)}
            include, exclude = self._options.include, self._options.exclude
            matched = (not include or _any_match(names, include)) and not _any_match(names, exclude)
            self._matched[name] = matched
        return matched


def _any_match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name, pattern in product(names, patterns))

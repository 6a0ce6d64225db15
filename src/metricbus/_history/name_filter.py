"""Selects series and media by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import msgspec

from metricbus._common.media_records import MediumRecord
from metricbus._common.records import RANK_PREFIX, ScalarRow, rank_prefix

_MAX_LISTED = 20

R = TypeVar("R", bound=ScalarRow | MediumRecord)


class NameFilter:
    """A filter that accepts names matching any of `globs`, or every name if there are no globs.

    `loss` matches the series on all ranks, and `rank1/loss` only that of rank 1, as in the options
    of sinks.
    """

    def __init__(self, globs: Sequence[str] = ()) -> None:
        self.globs = globs
        self._matches_by_name: dict[str, bool] = {}

    def matches(self, name: str) -> bool:
        """Check whether `name`, with its rank prefix, matches."""
        is_match = self._matches_by_name.get(name)
        if is_match is None:
            candidates = {name, RANK_PREFIX.sub("", name)}
            is_match = not self.globs or any(
                candidate == glob or fnmatchcase(candidate, glob)
                for candidate in candidates
                for glob in self.globs
            )
            self._matches_by_name[name] = is_match
        return is_match

    def filter_record(self, record: R) -> R | None:
        """Return the record reduced to the names that match with its rank; None if there are none.

        The names in the record are without the rank, as in the journal.
        """
        prefix = rank_prefix(record.rank)
        if isinstance(record, MediumRecord):
            return record if self.matches(prefix + record.name) else None
        values = {n: v for n, v in record.values.items() if self.matches(prefix + n)}
        if len(values) == len(record.values):
            return record
        return msgspec.structs.replace(record, values=values) if values else None

    def names(self) -> list[str]:
        """Return all names checked so far, in the order of the checks."""
        return list(self._matches_by_name)

    def matched_names(self) -> list[str]:
        """Return the matching names among those checked so far, in the order of the checks."""
        return [name for name, is_match in self._matches_by_name.items() if is_match]

    def no_match_message(self) -> str:
        """Return an error message for globs that match none of the names checked so far."""
        return no_match_message(self.globs, self.names())


def no_match_message(patterns: Sequence[str], names: Sequence[str]) -> str:
    """Return an error message for patterns that match none of `names`, with similar names."""
    similar: dict[str, None] = {}
    for pattern in patterns:
        similar |= dict.fromkeys(difflib.get_close_matches(pattern, names, n=3, cutoff=0.5))
    message = f"No series matches {' or '.join(map(repr, patterns))}."
    if not names:
        return f"{message} Nothing has been logged yet."
    if similar:
        message += f" Did you mean {' or '.join(map(repr, similar))}?"
    n_more = len(names) - _MAX_LISTED
    more = f" and {n_more:,} more" if n_more > 0 else ""
    return f"{message} Available: {', '.join(names[:_MAX_LISTED])}{more}"

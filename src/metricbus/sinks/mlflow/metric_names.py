"""Maps rows to MLflow metrics: valid keys, and timestamps that keep equal values apart.

Both depend on the journal alone, so a row that is delivered again becomes the same metrics. A
histogram also becomes a row: its quantiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from metricbus._common.media_records import HistogramRecord
from metricbus._common.records import Rewind, ScalarRow
from metricbus._common.sink_urls import short_hash
from metricbus.sinks.base import with_partial_suffix

METRIC_NAME_TAG = "metricbus.name."
PARAM_NAME_TAG = "metricbus.param."
# mlflow.utils.validation allows 250 characters for a key, and tags put a prefix before it
_MAX_KEY_LENGTH = 250 - len(PARAM_NAME_TAG)
_INVALID = re.compile(r"[^/\w.\- :]")
_INVALID_IN_IMAGE_KEY = re.compile(r"[^a-zA-Z0-9_\-./ ]")  # of log_image
_ENDS_WITH_HASH = re.compile(r".*-[0-9a-f]{8}")
_MAX_IMAGE_KEY_LENGTH = 100  # the key is one part of a file name, which has at most 255 bytes
_KEEP_MS = 10_000
_PRUNE_ABOVE = 20_000

MetricIdentity: TypeAlias = tuple[str, int, str | float]
"""The key, step and stored value of a metric."""


class KeyMapper:
    """Maps names to MLflow keys, a different key for each name.

    MLflow allows letters, digits, `_ - . / :` and spaces, normalized paths only, and 250
    characters. Invalid characters become `_`. If another name already has the resulting key, a hash
    of the name is appended. The mapping thus depends on which name came first, so the sink restores
    `names_by_key` from the backend.
    """

    def __init__(self, names_by_key: Mapping[str, str]) -> None:
        self._keys = {name: key for key, name in names_by_key.items()}
        self._names = dict(names_by_key)

    def key(self, name: str) -> str:
        """Return the MLflow key for `name`, and remember it."""
        key = self._keys.get(name)
        if key is None:
            key = valid_key(name)
            if self._names.get(key, name) != name:
                key = _with_hash(key, name)
            self._keys[name] = key
            self._names[key] = name
        return key

    def forget(self, names: Iterable[str]) -> None:
        """Remove names whose keys were not written after all."""
        for name in names:
            self._names.pop(self._keys.pop(name, ""), None)

    def __contains__(self, name: str) -> bool:
        return name in self._keys


def metric_rows(records: Sequence[object]) -> list[ScalarRow]:
    """Return the rows that become metrics, in journal order."""
    rows: list[ScalarRow | Rewind] = []
    for record in records:
        if isinstance(record, ScalarRow):
            rows.append(record)
        elif isinstance(record, HistogramRecord):
            rows.append(_quantile_row(record))
    return [row for row in with_partial_suffix(rows) if isinstance(row, ScalarRow)]


def _quantile_row(record: HistogramRecord) -> ScalarRow:
    statistics = {
        "min": record.minimum,
        "p25": record.quantile(0.25),
        "p50": record.quantile(0.5),
        "p75": record.quantile(0.75),
        "max": record.maximum,
        "mean": record.mean,
    }
    return ScalarRow(
        step=record.step,
        epoch=record.epoch,
        time=record.time,
        values={
            f"{record.name}/histogram/{statistic}": value
            for statistic, value in statistics.items()
            if value is not None
        },
        axis=record.axis,
        at=record.at,
    )


def valid_key(name: str) -> str:
    """Return the name with everything replaced that MLflow refuses in a key."""
    parts = _INVALID.sub("_", name).split("/")
    key = "/".join("_" * max(1, len(part)) if part in ("", ".", "..") else part for part in parts)
    if key.startswith(".."):  # MLflow treats it as a path to a parent folder
        key = "__" + key[2:]
    return key if len(key) <= _MAX_KEY_LENGTH else _with_hash(key, name)


def image_key(name: str) -> str:
    """Return a key that `log_image` accepts, a different one for each name.

    A changed name gets a hash at its end, and so does a name that already looks like one.
    """
    key = _INVALID_IN_IMAGE_KEY.sub("_", valid_key(name))
    if key == name and len(key) <= _MAX_IMAGE_KEY_LENGTH and not _ENDS_WITH_HASH.fullmatch(key):
        return key
    return _with_hash(key, name, _MAX_IMAGE_KEY_LENGTH)


def _with_hash(key: str, name: str, max_length: int = _MAX_KEY_LENGTH) -> str:
    return f"{key[: max_length - 9]}-{short_hash(name)}"


class TimestampAllocator:
    """Gives metrics with equal key, step, value and millisecond different timestamps.

    MLflow identifies a metric by these four and keeps one of each. A metric whose millisecond is
    taken moves to the next free one. The set of allocated milliseconds does not depend on the order
    in which the metrics arrive. Metrics more than 10 seconds old are forgotten.
    """

    def __init__(self, taken: list[tuple[MetricIdentity, int]]) -> None:
        self._next = {(identity, ms): ms + 1 for identity, ms in taken}
        self._newest = max((ms for _, ms in taken), default=0)
        self._undo: list[tuple[tuple[MetricIdentity, int], int | None]] = []

    def allocate(self, identity: MetricIdentity, ms: int) -> int:
        """Return the first free millisecond at or after `ms`, and mark it as taken."""
        passed = []
        self._newest = max(self._newest, ms)
        while (following := self._next.get((identity, ms))) is not None:
            passed.append((identity, ms))
            ms = following
        # all passed slots lead past the new one, so the next search needs one step
        for slot in (*passed, (identity, ms)):
            self._undo.append((slot, self._next.get(slot)))
            self._next[slot] = ms + 1
        return ms

    def commit(self) -> None:
        """Keep the allocations since the last commit: MLflow has their metrics."""
        self._undo.clear()
        if len(self._next) > _PRUNE_ABOVE:
            oldest = self._newest - _KEEP_MS
            self._next = {slot: ms for slot, ms in self._next.items() if slot[1] >= oldest}

    def rollback(self) -> None:
        """Undo the allocations since the last commit."""
        for slot, before in reversed(self._undo):
            if before is None:
                del self._next[slot]
            else:
                self._next[slot] = before
        self._undo.clear()

    def recent(self, milliseconds: int = 50) -> list[tuple[MetricIdentity, int]]:
        """Return the newest allocations: those that a later metric could collide with."""
        return [slot for slot in self._next if slot[1] >= self._newest - milliseconds]

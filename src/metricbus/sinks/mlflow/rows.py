"""What a row becomes in MLflow: names that it allows, and times that keep equal values apart.

Both depend on the journal alone, so that the same rows, delivered again, are the same metrics. A
histogram becomes a row, too, of its quantiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from metricbus._common.media_records import HistogramRecord, MediumRecord
from metricbus._common.records import Rewind, Scalars
from metricbus._common.sink_urls import digest
from metricbus.sinks.base import with_marked_names

NAME_TAG = "metricbus.name."
PARAM_TAG = "metricbus.param."
_LONGEST_NAME = 250 - len(PARAM_TAG)  # 250 for each key: mlflow.utils.validation
_FORBIDDEN = re.compile(r"[^/\w.\- :]")
_FORBIDDEN_IN_KEY = re.compile(r"[^a-zA-Z0-9_\-./ ]")  # of log_image
_WITH_HASH = re.compile(r".*-[0-9a-f]{8}")
_LONGEST_KEY = 100  # a file's name has 255 bytes, and the key is not all of it
_REMEMBERED_MS = 10_000
_MANY = 20_000

Identity: TypeAlias = tuple[str, int, str | float]


class Names:
    """MLflow's name for each of ours; no two of ours share one.

    MLflow takes letters, digits, `_ - . / :` and blanks, paths that are in normal form, and 250
    characters. What it does not take becomes `_`. Where that is taken by another name already, a
    hash of the name is added; `taken` (MLflow's name to ours) therefore goes with the run.
    """

    def __init__(self, taken: Mapping[str, str]) -> None:
        self._keys = {name: key for key, name in taken.items()}
        self._owners = dict(taken)

    def key(self, name: str) -> str:
        """MLflow's name for `name`."""
        key = self._keys.get(name)
        if key is None:
            key = allowed(name)
            if self._owners.get(key, name) != name:
                key = _cut(key, name)
            self._keys[name] = key
            self._owners[key] = name
        return key

    def forget(self, names: Iterable[str]) -> None:
        """They have not come after all."""
        for name in names:
            self._owners.pop(self._keys.pop(name, ""), None)

    def knows(self, name: str) -> bool:
        """Whether the name has come before."""
        return name in self._keys


def rows_of(records: Sequence[Scalars | Rewind | MediumRecord]) -> list[Scalars]:
    """What is to become metrics, in the order of the journal."""
    rows: list[Scalars | Rewind] = []
    for record in records:
        if isinstance(record, Scalars):
            rows.append(record)
        elif isinstance(record, HistogramRecord):
            rows.append(_quantiles(record))
    return [row for row in with_marked_names(rows) if isinstance(row, Scalars)]


def _quantiles(record: HistogramRecord) -> Scalars:
    found = {
        "min": record.minimum,
        "p25": record.quantile(0.25),
        "p50": record.quantile(0.5),
        "p75": record.quantile(0.75),
        "max": record.maximum,
        "mean": record.mean,
    }
    return Scalars(
        step=record.step,
        epoch=record.epoch,
        time=record.time,
        values={
            f"{record.name}/histogram/{what}": value
            for what, value in found.items()
            if value is not None
        },
        axis=record.axis,
        at=record.at,
    )


def allowed(name: str) -> str:
    """The name as MLflow takes it; most are taken as they are."""
    parts = _FORBIDDEN.sub("_", name).split("/")
    key = "/".join("_" * max(1, len(part)) if part in ("", ".", "..") else part for part in parts)
    if key.startswith(".."):  # for MLflow a path that leads out
        key = "__" + key[2:]
    return key if len(key) <= _LONGEST_NAME else _cut(key, name)


def image_key(name: str) -> str:
    """The name as `log_image` takes it; no two names share one.

    A name that is changed gets a hash behind it; so does one that looks as if it had one.
    """
    key = _FORBIDDEN_IN_KEY.sub("_", allowed(name))
    if key == name and len(key) <= _LONGEST_KEY and not _WITH_HASH.fullmatch(key):
        return key
    return f"{key[: _LONGEST_KEY - 9]}-{digest(name)}"


def _cut(key: str, name: str) -> str:
    return f"{key[: _LONGEST_NAME - 9]}-{digest(name)}"


class Times:
    """Sets values apart that are equal in name, step, value and millisecond.

    MLflow knows a metric by these four and keeps one of each. So one that is taken moves to the
    next free millisecond. Which milliseconds are taken in the end does not depend on the order in
    which the values come. What lies 10 seconds back is forgotten.
    """

    def __init__(self, taken: list[tuple[Identity, int]]) -> None:
        self._next = {(identity, at): at + 1 for identity, at in taken}
        self._newest = max((at for _, at in taken), default=0)
        self._undo: list[tuple[tuple[Identity, int], int | None]] = []

    def place(self, identity: Identity, at: int) -> int:
        """The millisecond for this value, at `at` or after it."""
        passed = []
        self._newest = max(self._newest, at)
        while (following := self._next.get((identity, at))) is not None:
            passed.append((identity, at))
            at = following
        for slot in (*passed, (identity, at)):  # the next search takes one step
            self._undo.append((slot, self._next.get(slot)))
            self._next[slot] = at + 1
        return at

    def keep(self) -> None:
        """What was placed has been written."""
        self._undo.clear()
        if len(self._next) > _MANY:
            oldest = self._newest - _REMEMBERED_MS
            self._next = {slot: at for slot, at in self._next.items() if slot[1] >= oldest}

    def forget(self) -> None:
        """What was placed since the last `keep` has not been written."""
        for slot, before in reversed(self._undo):
            if before is None:
                del self._next[slot]
            else:
                self._next[slot] = before
        self._undo.clear()

    def recent(self, milliseconds: int = 50) -> list[tuple[Identity, int]]:
        """What is taken around now: what a value that comes next can meet."""
        return [slot for slot in self._next if slot[1] >= self._newest - milliseconds]

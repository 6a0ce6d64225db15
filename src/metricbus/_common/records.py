"""The records of a journal, and their encoding as one line of JSON each.

Everything that reads a run, such as sinks and `metricbus.read`, receives these objects. They are
immutable, and each reader decodes its own copies, so no sink can change what another one sees.

The encoding is plain JSON, except that the strings "NaN", "Infinity" and "-Infinity" represent the
three values that JSON lacks. Integers keep all 64 bits. Floats are written in the shortest form
that decodes to the same float64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec

from metricbus._common.media_records import Medium, MediumRecord

FORMAT_VERSION = 1
"""Version in every segment's header; incremented when old readers could misread new journals."""

EPOCH_TIME = "time/epoch"
"""Name of the metric for the duration of each epoch of `bus.epochs()`, in seconds."""

Number: TypeAlias = int | float
Call: TypeAlias = tuple[str | dict[str, Number], Number, int, int, int]
"""One queued call: (name, value, step, epoch, time), or for a mapping
(row, weight, step, epoch, time)."""

Best: TypeAlias = Literal["max", "min"]
"""Which one of several values is the best: the largest or the smallest."""

Status: TypeAlias = Literal["running", "finished", "failed", "killed"]

if TYPE_CHECKING:
    StoredNumber: TypeAlias = Number
else:  # in JSON, NaN and the infinities are strings, which `number_from_json` converts
    StoredNumber = int | float | Literal["NaN", "Infinity", "-Infinity"]
Values: TypeAlias = dict[str, StoredNumber]


class _Record(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, gc=False):
    """Base class of records: one JSON object whose first key, `kind`, identifies the class."""


class Header(_Record, frozen=True, tag="segment"):
    """The first line of a segment: its run, its writer's process, and the format version."""

    format: int
    run: str
    segment: str
    host: str
    pid: int
    rank: int
    time: int
    process_started: int = 0
    attempt: int = 1


class ScalarRow(_Record, frozen=True, tag="scalars"):
    """One row: the values that one call, or several adjacent calls, logged at a step and epoch.

    `time` is the time of the row's first call, in nanoseconds since 1970-01-01 UTC. `axis` is the x
    axis of the row: `""` for the step, `"epoch"`, or the name of another series. `at` is the
    position on it, None for the step. `sinks` names the sinks that receive the row; empty means
    all. A `partial` row holds the results so far of reductions whose process died before they were
    emitted. `rank` is the rank that logged the row. An `epoch_result` row holds the results of
    reductions over an epoch.
    """

    step: int
    epoch: int
    time: int
    values: Values
    axis: str = ""
    at: Number | None = None
    sinks: tuple[str, ...] = ()
    partial: bool = False
    rank: int = 0
    epoch_result: bool = False

    @property
    def is_per_epoch(self) -> bool:
        """Whether the values come once per epoch: results of reductions, or on the epoch axis."""
        # Old journals have the results of reductions on the epoch axis, without `epoch_result`.
        return self.epoch_result or self.axis == "epoch"

    @property
    def x(self) -> int:
        """The x position for integer-only backends: `at` if set, clamped to int64, else `step`."""
        if self.at is None:
            return self.step
        return min(max(int(self.at), -(1 << 63)), (1 << 63) - 1)


class Epoch(_Record, frozen=True, tag="epoch"):
    """The start of an epoch or, if `seconds` is set, its end and its duration."""

    step: int
    epoch: int
    time: int
    seconds: float | None = None


class Rewind(_Record, frozen=True, tag="rewind"):
    """Supersedes all earlier rows of the run whose step is greater than `step`.

    A row is earlier if it precedes this record in the same segment, or if it is in another segment
    and its time is not later. An attempt is one start of a run; each resume is a new attempt. If
    the run was resumed from a checkpoint taken at `attempt`, `segment` and `line`, the record also
    supersedes the rows from `line` on in that segment, and all rows of the attempts after `attempt`
    and before that of the record. The record of a `rank` other than 0 supersedes only the rows from
    `line` on in `segment`.
    """

    step: int
    epoch: int
    time: int
    attempt: int = 0
    segment: str = ""
    line: int = 0
    rank: int = 0


class RunUpdate(_Record, frozen=True, tag="update"):
    """An addition to the run's config, tags and summary. Applying it twice has no further effect.

    `config` is merged into the config key by key, and `tags` are appended to the tags. `summary`
    has final values by name; None removes one. With `best`, a value replaces an earlier one only if
    it is larger (`"max"`) or smaller (`"min"`). `rank` is the rank of the summary, as for a row.
    """

    step: int
    epoch: int
    time: int
    config: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    summary: dict[str, StoredNumber | None] = {}
    best: Best | None = None
    rank: int = 0


class PartialAggregates(_Record, frozen=True, tag="open"):
    """The current results of all pending reductions, as partial rows; replaces the previous one.

    It only counts in a segment without an `End`, and only for names that have no later row there.
    """

    time: int
    rows: list[ScalarRow]


class DroppedCounts(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The numbers of values that were logged but not written to the journal, by reason.

    `queue`: the queue was full. `media`: encoding failed or did not finish in time. `unwritable`:
    the value could not be copied from its device, or the journal cannot represent it.
    """

    queue: int = 0
    media: int = 0
    unwritable: int = 0

    @property
    def total(self) -> int:
        """The number of all dropped values."""
        return self.queue + self.media + self.unwritable


class Dropped(_Record, frozen=True, tag="dropped"):
    """What the writer of this segment has dropped so far; replaces the previous record."""

    time: int
    dropped: DroppedCounts


class End(_Record, frozen=True, tag="end"):
    """The last line of a segment whose writer closed it properly.

    `dropped` is the final count; None in segments of versions that did not record it.
    """

    status: Status
    time: int
    dropped: DroppedCounts | None = None


RANK_PREFIX = re.compile(r"^rank\d+/")
"""What `rank_prefix` returns for any rank but 0."""

R = TypeVar("R")

Record: TypeAlias = (
    Header | ScalarRow | Epoch | Rewind | RunUpdate | PartialAggregates | Dropped | End | Medium
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)

_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(records: Sequence[Record]) -> bytes:
    """Return the records as JSON lines, each ended by a newline."""
    lines: bytes = _encoder.encode_lines(records)
    # msgspec encodes NaN and the infinities as null. Otherwise only a `RunUpdate` can have null.
    if b"null" in lines:
        lines = _encoder.encode_lines([_nonfinite_to_text(record) for record in records])
    return lines


def decode(line: bytes) -> Record:
    """Return the record in one line; raise an error if it is not a record."""
    record: Record = _decoder.decode(line)
    if b'"NaN"' in line or b'Infinity"' in line:
        rows = record.rows if isinstance(record, PartialAggregates) else [record]
        for row in rows:
            if isinstance(row, ScalarRow):
                row.values.update({n: number_from_json(v) for n, v in row.values.items()})
            elif isinstance(row, RunUpdate):
                row.summary.update({n: v and number_from_json(v) for n, v in row.summary.items()})
    return record


def decode_or_none(line: bytes) -> Record | None:
    """Return the record in a line; None if the line is damaged."""
    try:
        return decode(line)
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError):
        return None


def count_values(record: Record) -> int:
    """Return the number of values in a record: one per name in a row, one for a medium."""
    if isinstance(record, ScalarRow):
        return len(record.values)
    return 1 if isinstance(record, MediumRecord) else 0


def with_rank(record: R, rank: int) -> R:
    """Return a row, a medium or an update with its `rank` set; other records unchanged."""
    if isinstance(record, ScalarRow | MediumRecord | RunUpdate):
        return msgspec.structs.replace(record, rank=rank)
    return record


def rank_prefix(rank: int) -> str:
    """Return what readers put before the names that a rank logs; empty for rank 0."""
    return f"rank{rank}/" if rank else ""


def with_rank_prefix(record: R) -> R:
    """Return the record with its rank in all names: `loss` of rank 1 becomes `rank1/loss`."""
    if not isinstance(record, ScalarRow | MediumRecord | RunUpdate) or not record.rank:
        return record
    prefix = rank_prefix(record.rank)
    if isinstance(record, RunUpdate):
        summary = {prefix + name: value for name, value in record.summary.items()}
        return msgspec.structs.replace(record, summary=summary)
    axis = record.axis if record.axis in ("", "epoch") else prefix + record.axis
    if isinstance(record, MediumRecord):
        return msgspec.structs.replace(record, name=prefix + record.name, axis=axis)
    values = {prefix + name: value for name, value in record.values.items()}
    return msgspec.structs.replace(record, values=values, axis=axis)


def number_to_json(value: Number) -> Number:
    """Return the number, or the string that stands for NaN or an infinity."""
    # The difference of a finite number and itself is 0, and NaN otherwise.
    if value - value == 0:
        return value
    text: Any = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return text  # type: ignore[no-any-return]  # see StoredNumber


def number_from_json(value: Number) -> Number:
    """Reverse `number_to_json`."""
    return _NONFINITE[value] if isinstance(value, str) else value


def _nonfinite_to_text(record: Record) -> Record:
    if isinstance(record, PartialAggregates):
        return msgspec.structs.replace(record, rows=list(map(_nonfinite_to_text, record.rows)))
    if isinstance(record, RunUpdate):
        summary = {n: None if v is None else number_to_json(v) for n, v in record.summary.items()}
        return msgspec.structs.replace(record, summary=summary)
    if not isinstance(record, ScalarRow):
        return record
    values = {name: number_to_json(value) for name, value in record.values.items()}
    return msgspec.structs.replace(record, values=values)

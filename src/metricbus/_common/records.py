"""The closed set of records, and how each is written as one line of JSON.

A journal is a sequence of these lines. Everything that reads a run (consumers, `metricbus.read`)
gets these objects and nothing else. They are immutable, and each reader decodes its own, so no sink
can change what another one sees.

Encoding is plain JSON with one addition: JSON has no NaN and no infinities, so those three values
are written as the strings "NaN", "Infinity" and "-Infinity". Integers keep all 64 bits and floats
are written in the shortest form that reads back as the same float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import msgspec

from metricbus._common.media_records import (
    AudioRecord,
    ChartRecord,
    FileRecord,
    HistogramRecord,
    ImageRecord,
    MediumRecord,
    TableRecord,
    TextRecord,
    VideoRecord,
)

FORMAT_VERSION = 1
"""Written into every segment's header; raised when an old reader could misread a new journal."""

EPOCH_TIME = "time/epoch"
"""The metric that holds the duration of each epoch of `bus.epochs()`, in seconds."""

Number: TypeAlias = int | float
Call: TypeAlias = tuple[str | dict[str, Number], Number, int, int, int]
"""One queued call: (name, value, step, epoch, time), or (row, weight, step, epoch, time)
for a mapping."""

Status: TypeAlias = Literal["running", "finished", "failed", "killed"]

if TYPE_CHECKING:
    Values: TypeAlias = dict[str, Number]
else:  # on the wire three floats are spelled as strings; `decode` turns them back
    Values = dict[str, int | float | Literal["NaN", "Infinity", "-Infinity"]]


class _Record(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, gc=False):
    """Common to all records: one JSON object whose first key, `kind`, names the class."""


class Header(_Record, frozen=True, tag="segment"):
    """The first line of a segment: who writes it, and in which version of the format."""

    format: int
    run: str
    segment: str
    host: str
    pid: int
    rank: int
    time: int
    process_started: int = 0
    attempt: int = 1


class Scalars(_Record, frozen=True, tag="scalars"):
    """One row: what was logged at one step and epoch by one or a few joined calls.

    `time` is the wall clock of the row's first call in nanoseconds since 1970-01-01 UTC. A row
    whose x axis is not the step names its `axis` (`epoch`, or another series) and where it stands
    `at`. A row for some sinks alone lists their names. A `partial` row is what was in a reduction
    when its process died. Where several ranks write, it has its `rank`.
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

    @property
    def x(self) -> int:
        """Where the row stands for a backend with a single axis of 64-bit integers."""
        if self.at is None:
            return self.step
        return min(max(int(self.at), -(1 << 63)), (1 << 63) - 1)


class Epoch(_Record, frozen=True, tag="epoch"):
    """An epoch begins; or ends, after `seconds`."""

    step: int
    epoch: int
    time: int
    seconds: float | None = None


class Rewind(_Record, frozen=True, tag="rewind"):
    """Supersedes every row of the run so far whose step is greater, whenever it was logged.

    "So far" is what stands before it in its segment, and in others what is not younger. Where a run
    goes on from a checkpoint, it also supersedes what stands from `line` on in `segment`, where the
    checkpoint was taken, and whatever attempts after that `attempt` have logged. That of a `rank`
    other than the first has its own place alone.
    """

    step: int
    epoch: int
    time: int
    attempt: int = 0
    segment: str = ""
    line: int = 0
    rank: int = 0


class Open(_Record, frozen=True, tag="open"):
    """What the open reductions would give now, as partial rows; replaces the one before it.

    Counts only for a segment that ends without `End`, and there only for names that do not come
    again after it.
    """

    time: int
    rows: list[Scalars]


class Drops(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How many values a writer has taken and never written down, and why.

    They met a full `queue`; were `media` that could not be encoded, or not in time; or were
    `unwritable`: no device gave them, or no journal can hold them.
    """

    queue: int = 0
    media: int = 0
    unwritable: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.queue + self.media + self.unwritable


class Dropped(_Record, frozen=True, tag="dropped"):
    """What this segment's writer has dropped so far; it replaces the one before it."""

    time: int
    dropped: Drops


class End(_Record, frozen=True, tag="end"):
    """The last line of a segment whose writer closed it properly.

    `dropped` is all that its writer has dropped; None where an older one did not say.
    """

    status: Status
    time: int
    dropped: Drops | None = None


Medium: TypeAlias = (
    HistogramRecord
    | ImageRecord
    | TableRecord
    | TextRecord
    | AudioRecord
    | VideoRecord
    | ChartRecord
    | FileRecord
)

R = TypeVar("R")

Record: TypeAlias = Header | Scalars | Epoch | Rewind | Open | Dropped | End | Medium

DECODE_ERRORS = (msgspec.DecodeError, KeyError, UnicodeDecodeError)
"""What `decode` raises for a line that is not a record."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)

_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(records: Sequence[Record]) -> bytes:
    """The records as JSON lines, each ended by a newline."""
    lines: bytes = _encoder.encode_lines(records)
    if b"null" in lines:  # msgspec's spelling of NaN and the infinities, and nothing else of ours
        lines = _encoder.encode_lines([_spell_out(record) for record in records])
    return lines


def values_of(record: Record) -> int:
    """How many values a record carries: one for each name in a row, one for a medium."""
    if isinstance(record, Scalars):
        return len(record.values)
    return 1 if isinstance(record, MediumRecord) else 0


def with_rank(record: R, rank: int) -> R:
    """The record as that of a rank, where several write."""
    if isinstance(record, Scalars | MediumRecord):
        return msgspec.structs.replace(record, rank=rank)
    return record


def with_rank_prefix(record: R) -> R:
    """The record with its rank in its names: `loss` of rank 1 becomes `rank1/loss`."""
    if not isinstance(record, Scalars | MediumRecord) or not record.rank:
        return record
    prefix = f"rank{record.rank}/"
    axis = record.axis if record.axis in ("", "epoch") else prefix + record.axis
    if isinstance(record, MediumRecord):
        return msgspec.structs.replace(record, name=prefix + record.name, axis=axis)
    values = {prefix + name: value for name, value in record.values.items()}
    return msgspec.structs.replace(record, values=values, axis=axis)


def decode(line: bytes) -> Record:
    """The record in one line; `msgspec.DecodeError` when the line is none."""
    record: Record = _decoder.decode(line)
    if b'"NaN"' in line or b'Infinity"' in line:
        rows = record.rows if isinstance(record, Open) else [record]
        for row in rows:
            if isinstance(row, Scalars):
                _read_spelled(row.values)
    return record


def _read_spelled(values: Values) -> None:
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = _SPELLED[value]


def _spell_out(record: Record) -> Record:
    if isinstance(record, Open):
        return msgspec.structs.replace(record, rows=[_spell_out(row) for row in record.rows])
    if not isinstance(record, Scalars):
        return record
    values: dict[str, object] = dict(record.values)
    for name, value in record.values.items():
        if not math.isfinite(value):
            spelled = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            values[name] = spelled
    return msgspec.structs.replace(record, values=values)

"""Records of media: histograms, images, tables, text, audio, video, charts and files.

A record is one line of the journal. Large content is in files under the run folder's `media/`; the
record refers to each by path, size and SHA-256. `metricbus.sinks.MediaFolder` reads and verifies
these files.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TypeAlias, get_args

import msgspec


class FileRef(msgspec.Struct, frozen=True):
    """A reference to a file: its path, its size in bytes and its SHA-256 when it was logged.

    `path` is relative to the run folder, with forward slashes. A file that was logged without a
    copy has its absolute path.
    """

    path: str
    size: int
    sha256: str


class Box(msgspec.Struct, frozen=True, omit_defaults=True):
    """A labeled rectangle in an image.

    `left`, `top`, `right` and `bottom` are in pixels from the image's upper left corner, with
    `left <= right` and `top <= bottom`. With `fractions=True` they are fractions of the image's
    width and height, from 0 to 1. The record of an image always has them in pixels.

    `label` is the class, as a number (see `class_labels` of `Image`) or a name. `score` is a
    confidence, any finite number. `caption` is shown instead of the label where a sink draws boxes.
    """

    left: float
    top: float
    right: float
    bottom: float
    label: int | str | None = None
    score: float | None = None
    caption: str = ""
    fractions: bool = False


class ImageCell(msgspec.Struct, frozen=True, omit_defaults=True, tag="picture", tag_field="cell"):
    """An image in a table cell, stored as a PNG file; `width` and `height` are in pixels."""

    file: FileRef
    width: int
    height: int
    channels: int
    caption: str = ""


class NonFiniteCell(msgspec.Struct, frozen=True, tag="number", tag_field="cell"):
    """The JSON form of a table cell that is NaN or infinite: `nan`, `inf` or `-inf` as text."""

    value: str


Cell: TypeAlias = bool | int | float | str | ImageCell | None
"""The content of one table cell."""


class MediumRecord(
    msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, gc=False, kw_only=True
):
    """Base class of all media records: a name, a step, an epoch and a time (ns since 1970).

    `axis`, `at`, `sinks` and `rank` have the same meaning as in `ScalarRow`.
    """

    name: str
    step: int
    epoch: int
    time: int
    axis: str = ""
    at: int | float | None = None
    sinks: tuple[str, ...] = ()
    rank: int = 0

    @property
    def x(self) -> int:
        """The x position for integer-only backends: `at` if set, clamped to int64, else `step`."""
        if self.at is None:
            return self.step
        return min(max(int(self.at), -(1 << 63)), (1 << 63) - 1)


class HistogramRecord(MediumRecord, frozen=True, tag="histogram"):
    """A histogram: counts per bin, and statistics of all values.

    Bin `i` has the `counts[i]` values in `[edges[i], edges[i + 1])`; the last bin includes its
    upper edge. `count` is the number of finite values and equals the sum of `counts`. All
    statistics are those of the finite values. The numbers of NaN, infinite and negative infinite
    values are in `nan`, `infinite` and `minus_infinite`. `std` is the population standard
    deviation. A statistic is None if there are no finite values or if it exceeds the range of a
    float64.
    """

    counts: list[int]
    edges: list[float]
    count: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    sum: float | None = None
    sum_squares: float | None = None
    nan: int = 0
    infinite: int = 0
    minus_infinite: int = 0

    def quantile(self, q: float) -> float | None:
        """Return the estimated `q`-quantile, or None if the histogram has no finite values.

        Values are assumed to be evenly distributed within each bin. The result lies between
        `minimum` and `maximum`.

        Raises `ValueError` unless `q` is from 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be from 0 to 1, not {q}")
        if not self.count:
            return None
        target = q * self.count
        below = 0
        for count, low, high in zip(self.counts, self.edges, self.edges[1:], strict=False):
            if count and below + count >= target:
                fraction = (target - below) / count
                return self._clip(low * (1 - fraction) + high * fraction)
            below += count
        return self._clip(self.edges[-1])

    def _clip(self, value: float) -> float:
        low = value if self.minimum is None else max(value, self.minimum)
        return low if self.maximum is None else min(low, self.maximum)


class ImageRecord(MediumRecord, frozen=True, tag="image"):
    """An image as a PNG file.

    `masks` are PNG files of the same size whose pixels are class numbers; `class_labels` maps class
    numbers to names. `annotated` is a copy of the image with the boxes and masks drawn onto it, or
    None if there are none.
    """

    file: FileRef
    width: int
    height: int
    channels: int
    caption: str = ""
    boxes: list[Box] = []
    masks: dict[str, FileRef] = {}
    class_labels: dict[int, str] = {}
    annotated: FileRef | None = None

    @property
    def drawn(self) -> FileRef:
        """The image to show in a backend without boxes and masks: `annotated`, or else `file`."""
        return self.annotated or self.file


class TableRecord(MediumRecord, frozen=True, tag="table"):
    """Part number `part` of a table: rows `first_row` to `first_row + rows - 1`.

    All parts of one table have the same id, `table`. `file` has one JSON array per row.
    """

    table: str
    part: int
    first_row: int
    rows: int
    columns: list[str]
    file: FileRef


class TextRecord(MediumRecord, frozen=True, tag="text"):
    """A Markdown text of `length` characters; `start` has the first 80, without line breaks."""

    file: FileRef
    length: int
    start: str


class AudioRecord(MediumRecord, frozen=True, tag="audio"):
    """An audio clip: a WAV file with 16-bit PCM samples, or a copy of the user's file.

    `sample_rate` is in Hz; `frames` is the number of samples per channel. For a copied file whose
    header cannot be read, `sample_rate`, `channels` and `frames` are 0.
    """

    file: FileRef
    format: str
    sample_rate: int
    channels: int
    frames: int
    caption: str = ""


class VideoRecord(MediumRecord, frozen=True, tag="video"):
    """A video: an animated GIF, or a copy of the user's file.

    `fps`, `frames`, `width` and `height` may be 0 for a copied file.
    """

    file: FileRef
    format: str
    fps: float
    frames: int
    width: int
    height: int
    caption: str = ""


class ChartRecord(MediumRecord, frozen=True, tag="chart"):
    """A chart of table columns: the data, one JSON array per row, and a PNG `picture`."""

    chart: str
    x_column: str
    y_columns: list[str]
    title: str
    columns: list[str]
    rows: int
    data: FileRef
    picture: FileRef
    width: int
    height: int


class FileRecord(MediumRecord, frozen=True, tag="file"):
    """A file: a copy under `media/` if `copied`, otherwise a reference to the original.

    `origin` is the absolute path of the original.
    """

    file: FileRef
    origin: str
    copied: bool = False


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

MEDIA_RECORD_TYPES: tuple[type[MediumRecord], ...] = get_args(Medium)
"""All classes of media records, for a sink's `kinds`."""

_encode = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(
    list[bool | int | float | str | ImageCell | NonFiniteCell | None]
)


def encode_rows(rows: Sequence[Sequence[Cell]]) -> bytes:
    """Return the rows of a table as JSON lines."""
    return b"".join(_encode([_jsonable(cell) for cell in row]) + b"\n" for row in rows)


def decode_rows(content: bytes) -> list[list[Cell]]:
    """Return the rows of a table from its JSON lines."""
    return [
        [
            float(cell.value) if isinstance(cell, NonFiniteCell) else cell
            for cell in _decode_row.decode(line)
        ]
        for line in content.splitlines()
    ]


def _jsonable(cell: Cell) -> Cell | NonFiniteCell:
    if isinstance(cell, float) and not isfinite(cell):
        return NonFiniteCell(str(cell))
    return cell

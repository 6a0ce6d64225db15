"""The records of what is no number: histograms, images, tables, text, audio, video, charts, files.

A record is one line of the journal. What is large lies in files of the run's folder, in `media/`;
the record has a reference to each, with its size and sha256. `metricbus._journal.media_files.MediaFolder` reads
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec


class FileRef(msgspec.Struct, frozen=True):
    """A file as it was when it was logged.

    `path` is relative to the run's folder, with slashes; that of a file which was not copied is
    absolute.
    """

    path: str
    size: int
    sha256: str


class Box(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rectangle in an image, in pixels from its upper left corner, with what is in it.

    `label` is its class: a number or a name. `fractions` says that the sides are fractions of width
    and height; in a record they never are.
    """

    left: float
    top: float
    right: float
    bottom: float
    label: int | str | None = None
    score: float | None = None
    caption: str = ""
    fractions: bool = False


class Picture(msgspec.Struct, frozen=True, omit_defaults=True, tag="picture", tag_field="cell"):
    """A picture in a table: a PNG file."""

    file: FileRef
    width: int
    height: int
    channels: int
    caption: str = ""


class NotFinite(msgspec.Struct, frozen=True, tag="number", tag_field="cell"):
    """How a table's file has a number that JSON does not know: nan, inf, -inf."""

    value: str


Cell: TypeAlias = bool | int | float | str | Picture | None
"""What a table may hold."""


class MediumRecord(
    msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True, gc=False, kw_only=True
):
    """Common to all of them: a name, and where it stands, as for scalars.

    `axis`, `at`, `sinks` and `rank` mean what they mean in `Scalars`.
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
        """Where it stands for a backend with a single axis of 64-bit integers."""
        if self.at is None:
            return self.step
        return min(max(int(self.at), -(1 << 63)), (1 << 63) - 1)


class HistogramRecord(MediumRecord, frozen=True, tag="histogram"):
    """How often values fell between edges, and what is known of all of them.

    `counts[i]` values are from `edges[i]` on and below `edges[i + 1]`; the last bin has its upper
    edge, too. `count` values are finite and in the bins; `nan`, `infinite` and `minus_infinite`
    are counted apart. What is None cannot be said in a float64, or of no value at all.
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
        """The value below which the fraction `q` lies, as if values were spread evenly in each bin;
        within the extremes that are known. None if there are no values.

        Raises `ValueError` for a `q` outside of 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is of a fraction from 0 to 1, not {q}")
        if not self.count:
            return None
        wanted = q * self.count
        seen = 0
        for count, low, high in zip(self.counts, self.edges, self.edges[1:], strict=False):
            if count and seen + count >= wanted:
                fraction = (wanted - seen) / count
                return self._within(low * (1 - fraction) + high * fraction)
            seen += count
        return self._within(self.edges[-1])

    def _within(self, value: float) -> float:
        low = value if self.minimum is None else max(value, self.minimum)
        return low if self.maximum is None else min(low, self.maximum)


class ImageRecord(MediumRecord, frozen=True, tag="image"):
    """A PNG; `annotated` is the same with boxes and masks drawn onto it, where there are any.

    `masks` are PNGs of the same size whose pixels are class numbers.
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
        """The picture for who knows no boxes and masks."""
        return self.annotated or self.file


class TableRecord(MediumRecord, frozen=True, tag="table"):
    """A part of a table: rows `first_row` to `first_row + rows - 1` of the one with id `table`.

    `file` has one JSON array a row.
    """

    table: str
    part: int
    first_row: int
    rows: int
    columns: list[str]
    file: FileRef


class TextRecord(MediumRecord, frozen=True, tag="text"):
    """A text in Markdown; `start` is how it begins, on one line."""

    file: FileRef
    length: int
    start: str


class AudioRecord(MediumRecord, frozen=True, tag="audio"):
    """A sound: 16-bit PCM in a WAV file, or the file that was given.

    `sample_rate`, `channels` and `frames` are 0 where the file does not say.
    """

    file: FileRef
    format: str
    sample_rate: int
    channels: int
    frames: int
    caption: str = ""


class VideoRecord(MediumRecord, frozen=True, tag="video"):
    """A film: an animated GIF, or the file that was given (then the numbers may be 0)."""

    file: FileRef
    format: str
    fps: float
    frames: int
    width: int
    height: int
    caption: str = ""


class ChartRecord(MediumRecord, frozen=True, tag="chart"):
    """A chart of some columns of a table: the data, one JSON array a row, and a PNG of it."""

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
    """A file: a copy under `media/`, or, if it was not `copied`, the file itself where it was.

    `origin` is its path when it was logged.
    """

    file: FileRef
    origin: str
    copied: bool = False


MEDIA: tuple[type[MediumRecord], ...] = (
    HistogramRecord,
    ImageRecord,
    TableRecord,
    TextRecord,
    AudioRecord,
    VideoRecord,
    ChartRecord,
    FileRecord,
)
"""All of them, for a sink's `kinds`."""

_encode = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(list[bool | int | float | str | Picture | NotFinite | None])


def encode_rows(rows: Sequence[Sequence[Cell]]) -> bytes:
    """A table's rows as JSON lines."""
    return b"".join(_encode([_spelled(cell) for cell in row]) + b"\n" for row in rows)


def decode_rows(content: bytes) -> list[list[Cell]]:
    """The rows in a table's file."""
    return [
        [
            float(cell.value) if isinstance(cell, NotFinite) else cell
            for cell in _decode_row.decode(line)
        ]
        for line in content.splitlines()
    ]


def _spelled(cell: Cell) -> Cell | NotFinite:
    if isinstance(cell, float) and cell - cell != 0:
        return NotFinite(str(cell))
    return cell

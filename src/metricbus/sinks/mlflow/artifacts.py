"""What media become among MLflow's artefacts: where each is, and what is in it.

An artefact's path is made of the record alone, so a record that is delivered again overwrites its
own artefacts and no others.

Images and tables are laid out as `log_image` and `log_table` of MlflowClient do, so that MLflow's
page and `load_table` know them. Unlike there, nothing is ever read back: each part of a table is a
file of its own, and what is sent grows with the rows alone.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from metricbus._common.media_records import (
    AudioRecord,
    Cell,
    ChartRecord,
    FileRecord,
    FileRef,
    HistogramRecord,
    ImageRecord,
    MediumRecord,
    Picture,
    TableRecord,
    TextRecord,
    VideoRecord,
)
from metricbus._journal.media_files import MediaFolder, safe_name
from metricbus.sinks.mlflow.rows import image_key

_HARMLESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_NOT_HARMLESS = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,20}")
_THUMBNAIL = 256  # pixels of the longer side: mlflow.tracking.multimedia

Content = Path | Callable[[], bytes | None]
_encode = msgspec.json.Encoder().encode


class Artefact(NamedTuple):
    """What is to be sent: a file, or what a function returns, unless that is None."""

    path: str
    content: Content


class Layout:
    """Lays out the media of the run in `folder` as artefacts."""

    def __init__(self, folder: Path, log_fallback: Callable[[str, str], None]) -> None:
        self._media = MediaFolder(folder.absolute())
        self._tell_fallback = log_fallback

    def of(self, record: MediumRecord) -> Iterator[Artefact]:
        """What a record becomes; `MediaError` if one of its files is not what was logged."""
        match record:
            case HistogramRecord():
                self._tell_fallback("histogram", "a JSON file, and metrics of its quantiles")
                yield Artefact(_place("histograms", record, ".json"), _details(record))
            case ImageRecord():
                yield from self._image(record)
            case TableRecord():
                yield from self._rows(record, record.file, table_path(record))
            case ChartRecord():
                self._tell_fallback("chart", "a picture of it, and its data")
                yield from self._chart(record)
            case TextRecord():
                yield Artefact(_place("texts", record, ".md"), self._media.path(record.file))
            case AudioRecord():
                yield from self._captioned("audio", record)
            case VideoRecord():
                yield from self._captioned("videos", record)
            case FileRecord():
                name = _NOT_HARMLESS.sub("_", PurePosixPath(record.origin).name)[-80:]
                path = _place("files", record, f"/_{name}" if name[:1] in ".-" else f"/{name}")
                yield Artefact(path, self._media.path(record.file))

    def _image(self, record: ImageRecord) -> Iterator[Artefact]:
        """As `log_image` names them; in its folder, MLflow's page bears no file of another sort."""
        key = image_key(record.name).replace("/", "~")
        at = record.time // 1_000_000
        path = f"images/{key}+step+{record.x}+timestamp+{at}+{_id(record)}"
        drawn = self._media.path(record.drawn)
        yield Artefact(f"{path}.png", drawn)
        yield from self._thumbnail(f"{path}+compressed.webp", drawn)
        if record.boxes or record.masks:
            self._tell_fallback(
                "image with boxes or masks",
                "the picture with these drawn onto it; they are also in files of their own",
            )
        if not (record.caption or record.boxes or record.masks):
            return
        beside: dict[str, Any] = {"image": f"{path}.png", "original": f"{path}.png"}
        if record.annotated is not None:
            beside["original"] = _place("image_details", record, ".png")
            yield Artefact(beside["original"], self._media.path(record.file))
        masks = {}
        for number, (name, ref) in enumerate(record.masks.items()):
            masks[name] = _place("image_details", record, f"-mask-{number}.png")
            yield Artefact(masks[name], self._media.path(ref))
        details = _details(record, **beside, masks=masks)
        yield Artefact(_place("image_details", record, ".json"), details)

    def _thumbnail(self, path: str, picture: Path) -> Iterator[Artefact]:
        if self._compresses:
            yield Artefact(path, partial(_compressed, picture))

    def _rows(
        self, record: TableRecord | ChartRecord, file: FileRef, path: str
    ) -> Iterator[Artefact]:
        """The rows as `log_table` writes them, with the pictures in them.

        Where that cannot tell a number from its name (NaN and the infinities), also as they are in
        the run's folder.
        """
        stem = path.removesuffix(".json")
        rows = self._media.rows(record)
        folder = f"table_images/{stem.rpartition('/')[0]}"
        pictures: dict[str, Picture] = {}
        finite = True
        for row in rows:
            for cell in row:
                if isinstance(cell, Picture):
                    pictures[cell.file.sha256] = cell
                elif isinstance(cell, float) and cell - cell != 0:
                    finite = False
        for picture in pictures.values():
            png, webp = self._picture_paths(picture, folder)
            yield Artefact(png, self._media.path(picture.file))
            if webp != png:
                yield from self._thumbnail(webp, self._media.path(picture.file))
        if not finite:
            yield Artefact(f"{stem}.exact.jsonl", self._media.path(file))
        yield Artefact(path, partial(self._split, record, folder))

    def _split(self, record: TableRecord | ChartRecord, folder: str) -> bytes:
        """What pandas calls `orient="split"`."""
        rows = self._media.rows(record)
        data = [[self._cell(cell, folder) for cell in row] for row in rows]
        return _encode({"columns": record.columns, "data": data})

    def _cell(self, cell: Cell, folder: str) -> object:
        if isinstance(cell, float) and cell - cell != 0:
            return "NaN" if math.isnan(cell) else "Infinity" if cell > 0 else "-Infinity"
        if not isinstance(cell, Picture):
            return cell
        png, webp = self._picture_paths(cell, folder)
        found = {"type": "image", "filepath": png, "compressed_filepath": webp}
        return found | {"caption": cell.caption} if cell.caption else found

    def _picture_paths(self, picture: Picture, folder: str) -> tuple[str, str]:
        stem = f"{folder}/{picture.file.sha256[:32]}"
        return f"{stem}.png", f"{stem}.webp" if self._compresses else f"{stem}.png"

    @cached_property
    def _compresses(self) -> bool:
        try:
            from PIL import features
        except ImportError:
            return False
        return bool(features.check("webp"))

    def _chart(self, record: ChartRecord) -> Iterator[Artefact]:
        path, data = _place("charts", record, ".png"), _place("charts", record, ".data.json")
        yield Artefact(path, self._media.path(record.picture))
        yield from self._rows(record, record.data, data)
        details = _details(record, picture=path, data=data)
        yield Artefact(_place("charts", record, ".json"), details)

    def _captioned(self, kind: str, record: AudioRecord | VideoRecord) -> Iterator[Artefact]:
        path = _place(kind, record, _suffix(record.file))
        yield Artefact(path, self._media.path(record.file))
        if record.caption:
            yield Artefact(_place(kind, record, ".json"), _details(record, file=path))


def _place(kind: str, record: MediumRecord, ending: str) -> str:
    return f"{kind}/{safe_name(record.name)}/{record.x}-{_id(record)}{ending}"


def table_path(record: TableRecord) -> str:
    """Where the rows of this part of a table are."""
    table = record.table if _HARMLESS.fullmatch(record.table) else safe_name(record.table)
    return f"tables/{safe_name(record.name)}/{table}/part-{record.part:05}.json"


def _id(record: MediumRecord) -> str:
    """The same whenever the record is delivered, and another one for every record."""
    return hashlib.sha256(_encode(record)).hexdigest()[:16]


def _suffix(ref: FileRef) -> str:
    suffix = PurePosixPath(ref.path).suffix
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _details(record: MediumRecord, **paths: Any) -> Callable[[], bytes]:
    """A record as JSON, with the paths of its artefacts in the place of the run's files."""
    fields = {
        name: value
        for name, value in msgspec.structs.asdict(record).items()
        if not (isinstance(value, FileRef) or name in ("annotated", "sinks"))
    }
    return partial(_encode, fields | paths)


def _compressed(picture: Path) -> bytes | None:
    """As small as MLflow's page shows it in its grid; None where Pillow cannot do it."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            scale = _THUMBNAIL / max(image.size)
            size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
            transparent = "A" in image.getbands() or "transparency" in image.info
            content = io.BytesIO()
            small = image.convert("RGBA" if transparent else "RGB").resize(size)
            small.save(content, "WEBP")
    except (Image.DecompressionBombError, ValueError, OSError):
        return None
    return content.getvalue()

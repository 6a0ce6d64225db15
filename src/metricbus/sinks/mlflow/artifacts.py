"""Lays out media as MLflow artifacts: the path and content of each file.

An artifact's path depends on the record alone. A record that is delivered again overwrites its own
artifacts and no others.

Images and tables use the layout of `MlflowClient.log_image` and `log_table`, so MLflow's UI and
`load_table` find them. `log_table` downloads and extends one growing file; here each part of a
table is a separate file, so nothing is read back and every row is uploaded once.
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

from metricbus._common import media_records as media
from metricbus._journal.media_files import MediaFolder, safe_name
from metricbus.sinks.mlflow.metric_names import image_key

_SAFE_TABLE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_UNSAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9._-]+")
_SAFE_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,20}")
_THUMBNAIL_SIZE = 256  # pixels of the longer side: mlflow.tracking.multimedia

_encode = msgspec.json.Encoder().encode


class Artifact(NamedTuple):
    """A file to upload, or a function that returns its content (None: skip it)."""

    path: str
    content: Path | Callable[[], bytes | None]


class ArtifactLayout:
    """Lays out the media of the run in `folder` as artifacts."""

    def __init__(self, folder: Path, log_fallback: Callable[[str, str], None]) -> None:
        self._media = MediaFolder(folder.absolute())
        self._log_fallback = log_fallback

    def artifacts(self, record: media.MediumRecord) -> Iterator[Artifact]:
        """Yield a record's artifacts.

        Raises `MediaError` if one of its files is missing or has changed since it was logged.
        """
        match record:
            case media.HistogramRecord():
                self._log_fallback("histograms", "a JSON file and metrics of the quantiles")
                yield Artifact(_path("histograms", record, ".json"), _details(record))
            case media.ImageRecord():
                yield from self._image(record)
            case media.TableRecord():
                yield from self._table(record, record.file, table_path(record))
            case media.ChartRecord():
                self._log_fallback("charts", "an image and the data")
                yield from self._chart(record)
            case media.TextRecord():
                yield Artifact(_path("texts", record, ".md"), self._media.path(record.file))
            case media.AudioRecord():
                yield from self._captioned("audio", record)
            case media.VideoRecord():
                yield from self._captioned("videos", record)
            case media.FileRecord():
                name = _UNSAFE_CHARACTERS.sub("_", PurePosixPath(record.origin).name)[-80:]
                path = _path("files", record, f"/_{name}" if name[:1] in ".-" else f"/{name}")
                yield Artifact(path, self._media.path(record.file))

    def _image(self, record: media.ImageRecord) -> Iterator[Artifact]:
        # MLflow's UI fails on other kinds of files in images/, so details are in another folder
        key = image_key(record.name).replace("/", "~")
        ms = record.time // 1_000_000
        stem = f"images/{key}+step+{record.x}+timestamp+{ms}+{_id(record)}"
        drawn = self._media.path(record.drawn)
        yield Artifact(f"{stem}.png", drawn)
        yield from self._thumbnail(f"{stem}+compressed.webp", drawn)
        if record.boxes or record.masks:
            self._log_fallback(
                "images with boxes or masks",
                "the image with these drawn onto it, and each of them in a separate file",
            )
        if not (record.caption or record.boxes or record.masks):
            return
        paths: dict[str, Any] = {"image": f"{stem}.png", "original": f"{stem}.png"}
        if record.annotated is not None:
            paths["original"] = _path("image_details", record, ".png")
            yield Artifact(paths["original"], self._media.path(record.file))
        masks = {}
        for number, (name, ref) in enumerate(record.masks.items()):
            masks[name] = _path("image_details", record, f"-mask-{number}.png")
            yield Artifact(masks[name], self._media.path(ref))
        details = _details(record, **paths, masks=masks)
        yield Artifact(_path("image_details", record, ".json"), details)

    def _thumbnail(self, path: str, picture: Path) -> Iterator[Artifact]:
        if self._can_write_webp:
            yield Artifact(path, partial(_thumbnail_content, picture))

    def _table(
        self, record: media.TableRecord | media.ChartRecord, file: media.FileRef, path: str
    ) -> Iterator[Artifact]:
        """Yield the rows as `log_table` writes them, and the pictures in them.

        MLflow's format cannot distinguish NaN and infinities from strings. If there are any, yield
        the run's own file of the rows, too.
        """
        stem = path.removesuffix(".json")
        rows = self._media.rows(record)
        folder = f"table_images/{stem.rpartition('/')[0]}"
        pictures: dict[str, media.ImageCell] = {}
        is_finite = True
        for row in rows:
            for cell in row:
                if isinstance(cell, media.ImageCell):
                    pictures[cell.file.sha256] = cell
                elif isinstance(cell, float) and cell - cell != 0:
                    is_finite = False
        for picture in pictures.values():
            png, webp = self._picture_paths(picture, folder)
            yield Artifact(png, self._media.path(picture.file))
            yield from self._thumbnail(webp, self._media.path(picture.file))
        if not is_finite:
            yield Artifact(f"{stem}.exact.jsonl", self._media.path(file))
        yield Artifact(path, partial(self._table_content, record, folder))

    def _table_content(self, record: media.TableRecord | media.ChartRecord, folder: str) -> bytes:
        """Return the rows as JSON in the format of pandas's `orient="split"`."""
        data = [[self._cell(cell, folder) for cell in row] for row in self._media.rows(record)]
        return _encode({"columns": record.columns, "data": data})

    def _cell(self, cell: media.Cell, folder: str) -> object:
        if isinstance(cell, float) and cell - cell != 0:
            return "NaN" if math.isnan(cell) else "Infinity" if cell > 0 else "-Infinity"
        if not isinstance(cell, media.ImageCell):
            return cell
        png, webp = self._picture_paths(cell, folder)
        image = {"type": "image", "filepath": png, "compressed_filepath": webp}
        return image | {"caption": cell.caption} if cell.caption else image

    def _picture_paths(self, picture: media.ImageCell, folder: str) -> tuple[str, str]:
        stem = f"{folder}/{picture.file.sha256[:32]}"
        return f"{stem}.png", f"{stem}.webp" if self._can_write_webp else f"{stem}.png"

    @cached_property
    def _can_write_webp(self) -> bool:
        try:
            from PIL import features
        except ImportError:
            return False
        return bool(features.check("webp"))

    def _chart(self, record: media.ChartRecord) -> Iterator[Artifact]:
        path, data = _path("charts", record, ".png"), _path("charts", record, ".data.json")
        yield Artifact(path, self._media.path(record.picture))
        yield from self._table(record, record.data, data)
        details = _details(record, picture=path, data=data)
        yield Artifact(_path("charts", record, ".json"), details)

    def _captioned(
        self, kind: str, record: media.AudioRecord | media.VideoRecord
    ) -> Iterator[Artifact]:
        suffix = PurePosixPath(record.file.path).suffix
        path = _path(kind, record, suffix if _SAFE_SUFFIX.fullmatch(suffix) else "")
        yield Artifact(path, self._media.path(record.file))
        if record.caption:
            yield Artifact(_path(kind, record, ".json"), _details(record, file=path))


def table_path(record: media.TableRecord) -> str:
    """Return the path of the artifact with the rows of this part of a table."""
    table = record.table if _SAFE_TABLE_ID.fullmatch(record.table) else safe_name(record.table)
    return f"tables/{safe_name(record.name)}/{table}/part-{record.part:05}.json"


def _path(kind: str, record: media.MediumRecord, ending: str) -> str:
    return f"{kind}/{safe_name(record.name)}/{record.x}-{_id(record)}{ending}"


def _id(record: media.MediumRecord) -> str:
    """Return a hash of the record, so that it is the same in every delivery."""
    return hashlib.sha256(_encode(record)).hexdigest()[:16]


def _details(record: media.MediumRecord, **paths: Any) -> Callable[[], bytes]:
    """Return a function that encodes the record as JSON, with artifact paths for its files."""
    fields = {
        name: value
        for name, value in msgspec.structs.asdict(record).items()
        if not (isinstance(value, media.FileRef) or name in ("annotated", "sinks"))
    }
    return partial(_encode, fields | paths)


def _thumbnail_content(picture: Path) -> bytes | None:
    """Return the picture in the size that MLflow's UI shows; None if Pillow cannot read it."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            scale = _THUMBNAIL_SIZE / max(image.size)
            size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
            is_transparent = "A" in image.getbands() or "transparency" in image.info
            content = io.BytesIO()
            small = image.convert("RGBA" if is_transparent else "RGB").resize(size)
            small.save(content, "WEBP")
    except (Image.DecompressionBombError, ValueError, OSError):
        return None
    return content.getvalue()

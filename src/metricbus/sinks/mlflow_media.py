"""What is no number, as MLflow's artefacts: where each is, what is in it, and how it is sent.

All files of a batch are checked before the first is sent. An artefact's path is made of the record
alone, so a record that is delivered again overwrites its own artefacts and no others.

Images and tables are laid out as `log_image` and `log_table` of MlflowClient do, so that MLflow's
page and `load_table` know them. Unlike there, nothing is ever read back: each part of a table is a
file of its own, and what is sent grows with the rows alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from metricbus.media import MediaFolder, safe_name
from metricbus.media_records import (
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
from metricbus.sinks.mlflow_rows import image_key
from metricbus.sinks.mlflow_store import requests, upload
from metricbus.urls import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME_TAG = "metricbus.medium."
_IMAGES_TAG = "mlflow.loggedImages"  # mlflow.utils.mlflow_tags
_TABLES_TAG = "mlflow.loggedArtifacts"
_ROOM_FOR_TABLES = 7500  # of the 8,000 characters that a tag may have: log_table adds to it, too

_HARMLESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_NOT_HARMLESS = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,20}")
_PART, _FIRST_PART = re.compile(r"tables/.+/part-\d+\.json"), "/part-00000.json"
_BYTES_A_SECOND = 1_000_000  # a server answers when it has stored the file, perhaps far away
_THUMBNAIL = 256  # pixels of the longer side: mlflow.tracking.multimedia

Content = Path | Callable[[], bytes | None]
_encode = msgspec.json.Encoder().encode


class Artefact(NamedTuple):
    """What is to be sent: a file, or what a function returns, unless that is None."""

    path: str
    content: Content


class Artefacts:
    """Sends the media of the run in `folder` to MLflow's run."""

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        folder: Path,
        timeout_secs: int,
        tell_fallback: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._media = MediaFolder(folder.absolute())
        self._timeout_secs = timeout_secs
        self._tell_fallback = tell_fallback
        self._sent: set[str] = set()  # by a call that failed then
        self._tagged: set[str] = set()  # tags that the run has
        self._seen_tables: set[str] = set()  # listed, or known to find no room

    def send(self, records: Sequence[MediumRecord]) -> None:
        """Sends the artefacts of all records; nothing, if a file is not what was logged.

        What fails half way goes on from there when the records come again, all or some of them.
        """
        if not records:
            return
        plan = [artefact for record in records for artefact in self._plan(record)]
        with tempfile.TemporaryDirectory(prefix="metricbus-") as folder:
            for artefact in plan:
                if artefact.path not in self._sent:
                    self._send(artefact, Path(folder))
                    self._sent.add(artefact.path)
        with requests(self._timeout_secs):
            for record in records:
                self._tag_name(record)
            if any(isinstance(record, ImageRecord) for record in records):
                self._tag(_IMAGES_TAG, "True")
            self._list_tables([_table_path(one) for one in records if isinstance(one, TableRecord)])
        self._sent.difference_update(artefact.path for artefact in plan)

    def _send(self, artefact: Artefact, folder: Path) -> None:
        """MLflow gives an artefact the name of the file that it is made of."""
        target, _, name = artefact.path.rpartition("/")
        file = folder / name
        if isinstance(artefact.content, Path):
            file.symlink_to(artefact.content)
        else:
            content = artefact.content()
            if content is None:
                return
            file.write_bytes(content)
        secs = self._timeout_secs + file.stat().st_size // _BYTES_A_SECOND
        with requests(secs):
            upload(self._client, self._run_id, file, target)
        file.unlink()

    # What a record becomes.

    def _plan(self, record: MediumRecord) -> Iterator[Artefact]:
        match record:
            case HistogramRecord():
                self._tell_fallback("histogram", "a JSON file, and metrics of its quantiles")
                yield Artefact(_place("histograms", record, ".json"), _details(record))
            case ImageRecord():
                yield from self._image(record)
            case TableRecord():
                yield from self._rows(record, record.file, _table_path(record))
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

    # The run's tags.

    def _tag(self, key: str, value: str) -> None:
        if key not in self._tagged:
            self._client.set_tag(self._run_id, key, value)
            self._tagged.add(key)

    def _tag_name(self, record: MediumRecord) -> None:
        """The original of each name that a path has changed."""
        name, folder = record.name, safe_name(record.name)
        if isinstance(record, ImageRecord) and (key := image_key(name)) != name:
            self._tag(NAME_TAG + key, name[:8000])
        if folder != f"{name}-{digest(name)}":
            self._tag(NAME_TAG + folder, name[:8000])

    def _list_tables(self, paths: Sequence[str]) -> None:
        """MLflow's page and `load_table` find tables by a tag, which is soon full.

        So the first part of a table may take the place of a later part.
        """
        new = [path for path in paths if path not in self._seen_tables]
        if not new:
            return
        before = self._client.get_run(self._run_id).data.tags.get(_TABLES_TAG, "")
        listed: list[Any] = []
        with suppress(ValueError):
            listed = json.loads(before or "[]")
        if not isinstance(listed, list):
            listed = []
        for path in new:
            if not _list(path, listed):
                self._tell_fallback(
                    "list of so many tables",
                    "all of their parts as artefacts; its page and load_table know the first ones",
                )
        if (text := json.dumps(listed)) != before:
            self._client.set_tag(self._run_id, _TABLES_TAG, text)
        self._seen_tables.update(new)


def _place(kind: str, record: MediumRecord, ending: str) -> str:
    return f"{kind}/{safe_name(record.name)}/{record.x}-{_id(record)}{ending}"


def _table_path(record: TableRecord) -> str:
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


def _list(path: str, listed: list[Any]) -> bool:
    """Adds the path of a table's part; False if there is no room for it."""
    entry = {"path": path, "type": "table"}
    if entry in listed:
        return True
    added = [*listed, entry]
    if path.endswith(_FIRST_PART):
        for other in reversed(listed):
            if len(json.dumps(added)) <= _ROOM_FOR_TABLES:
                break
            if _is_later_part(other):
                added.remove(other)
    if len(json.dumps(added)) > _ROOM_FOR_TABLES:
        return False
    listed[:] = added
    return True


def _is_later_part(entry: Any) -> bool:
    path = str(entry.get("path")) if isinstance(entry, dict) else ""
    return _PART.fullmatch(path) is not None and not path.endswith(_FIRST_PART)


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

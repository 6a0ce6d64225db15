"""What becomes of each medium in Weights & Biases: the columns of its history row.

W&B copies (here: links) files into its run's folder, where its own process finds them. A table is
also an artifact, which has the pictures in its cells.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from metricbus._common.media_records import (
    AudioRecord,
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
from metricbus.errors import Rejected
from metricbus.sinks.wandb.names import (
    OURS,
    RENAMED,
    class_names,
    class_of,
    file_key,
    key_of,
    longest_of_tables,
    numbers_of_texts,
)
from metricbus.sinks.wandb.tables import Tables

if TYPE_CHECKING:
    import wandb
    from numpy.typing import NDArray

_MOST_BINS = 512
_HIGHEST_CLASS = 255  # in a mask
_NAMED_BY_FILES = (ImageRecord, TableRecord, AudioRecord, VideoRecord, ChartRecord)
_ODD = re.compile(r"[^\w.+=@ -]+")


class MediaColumns:
    """Makes columns of media for one run.

    `tell` is the sink's `log_fallback`.
    """

    def __init__(
        self, run: wandb.Run, folder: MediaFolder, tell: Callable[[str, str], None]
    ) -> None:
        self._run = run
        self._folder = folder
        self._tables = Tables(folder, self._picture)
        self._tell = tell
        self._longest = longest_of_tables(run.id)
        self._paths: dict[FileRef, Path] = {}  # those that were checked
        self._labels: dict[str, dict[int, str]] = {}  # W&B keeps a column's last ones for all
        self._makers: dict[type[MediumRecord], Callable[[Any, str, int], dict[str, Any]]] = {
            HistogramRecord: self._histogram,
            ImageRecord: self._image,
            TableRecord: self._table,
            TextRecord: self._text,
            AudioRecord: self._audio,
            VideoRecord: self._video,
            ChartRecord: self._chart,
            FileRecord: self._file,
        }

    def check(self, records: Iterable[MediumRecord]) -> None:
        """`MediaError` if a file of theirs is not what was logged. Forgets those before."""
        self._paths.clear()
        for record in records:
            for ref in self._files_of(record):
                self._paths[ref] = self._folder.path(ref)

    def _files_of(self, record: MediumRecord) -> Iterator[FileRef]:
        for value in msgspec.structs.astuple(record):
            if isinstance(value, FileRef):
                yield value
            elif isinstance(value, dict):
                yield from (held for held in value.values() if isinstance(held, FileRef))
        if isinstance(record, TableRecord | ChartRecord):
            for row in self._folder.rows(record):
                yield from (cell.file for cell in row if isinstance(cell, Picture))

    def of(self, record: MediumRecord, number: int) -> dict[str, Any]:
        """The columns of a record that was checked and is row `number`; the first has the medium.

        Those that say what the row is come beside it.
        """
        key = key_of(record.name)
        if isinstance(record, _NAMED_BY_FILES):
            tabular = isinstance(record, TableRecord | ChartRecord)
            key = file_key(record.name, self._longest) if tabular else file_key(record.name)
        columns = self._makers[type(record)](record, key, number)
        if key != key_of(record.name):
            columns[f"{OURS}name"] = record.name
        return columns

    def _histogram(self, record: HistogramRecord, key: str, _: int) -> dict[str, Any]:
        import wandb

        counts, edges = record.counts or [0], record.edges or [0.0, 1.0]
        if record.nan or record.infinite or record.minus_infinite:
            self._tell("histogram with NaN or infinities", "the finite values")
        if len(counts) > _MOST_BINS:
            self._tell("histogram", f"{_MOST_BINS} bins at most: neighbours are joined")
            counts, edges = _joined(counts, edges)
        return {key: wandb.Histogram(np_histogram=(counts, edges))}  # type: ignore[arg-type]

    def _image(self, record: ImageRecord, key: str, _: int) -> dict[str, Any]:
        masks = {name: self._mask(ref) for name, ref in record.masks.items()}
        if any(mask.max(initial=0) > _HIGHEST_CLASS for mask in masks.values()):
            self._tell(
                f"mask with class numbers beyond {_HIGHEST_CLASS}", "a picture with all drawn on it"
            )
            return {key: self._picture(record.drawn, record.caption)}
        boxes = self._boxes(record, key) if record.boxes else None
        return {
            key: self._picture(
                record.file,
                record.caption,
                boxes={"boxes": boxes} if boxes else None,
                masks={
                    name: {
                        "mask_data": mask,
                        "class_labels": class_names(_classes(mask), record.class_labels),
                    }
                    for name, mask in masks.items()
                }
                or None,
            )
        }

    def _picture(self, ref: FileRef, caption: str, **about: Any) -> wandb.Image:
        import wandb

        with _readable(ref):
            return wandb.Image(str(self._paths[ref]), caption=caption or None, **about)

    def _mask(self, ref: FileRef) -> NDArray[Any]:
        import numpy as np
        from PIL import Image

        with _readable(ref), Image.open(self._paths[ref]) as picture:
            return np.asarray(picture)

    def _boxes(self, record: ImageRecord, key: str) -> dict[str, Any]:
        numbers = numbers_of_texts(record)
        labels = self._labels.setdefault(key, {})
        labels.update(record.class_labels)
        data = []
        for box in record.boxes:
            id, text = class_of(box, record.class_labels, numbers)
            labels[id] = text
            described: dict[str, Any] = {
                "position": {
                    "minX": box.left,
                    "maxX": box.right,
                    "minY": box.top,
                    "maxY": box.bottom,
                },
                "domain": "pixel",
                "class_id": id,
                "box_caption": box.caption or ("" if box.label is None else text),
            }
            if box.score is not None:
                described["scores"] = {"score": box.score}
            data.append(described)
        return {"box_data": data, "class_labels": dict(labels)}

    def _table(self, record: TableRecord, key: str, _: int) -> dict[str, Any]:
        table = self._tables.table(record)
        return {key: table, f"{OURS}table": record.table, f"{OURS}first_row": record.first_row}

    def _text(self, record: TextRecord, key: str, _: int) -> dict[str, Any]:
        return {key: self._folder.text(record.file)}

    def _audio(self, record: AudioRecord, key: str, _: int) -> dict[str, Any]:
        import wandb

        path = str(self._paths[record.file])
        rate, caption = record.sample_rate or None, record.caption or None
        return {key: wandb.Audio(path, sample_rate=rate, caption=caption)}

    def _video(self, record: VideoRecord, key: str, number: int) -> dict[str, Any]:
        import wandb

        path = self._paths[record.file]
        if path.suffix[1:].lower() not in wandb.Video.EXTS:
            self._tell(f"video ({path.suffix or record.format})", "the file, and its path as text")
            return self._saved(record, path.name, key, number)
        return {key: wandb.Video(str(path), caption=record.caption or None)}

    def _file(self, record: FileRecord, key: str, number: int) -> dict[str, Any]:
        return self._saved(record, PurePosixPath(record.origin).name, key, number)

    def _saved(
        self, record: FileRecord | VideoRecord, name: str, key: str, number: int
    ) -> dict[str, Any]:
        """Puts the file among those of the run, and says where it is."""
        files = Path(self._run.dir)
        plain = _ODD.sub("_", name)[-60:]
        path = files / RENAMED / safe_name(record.name) / str(number) / (plain.strip(".") or "file")
        path.parent.mkdir(parents=True, exist_ok=True)
        _link(self._paths[record.file], path)
        self._run.save(path, base_path=files, policy="now", glob=False)
        return {key: path.relative_to(files).as_posix()}

    def _chart(self, record: ChartRecord, key: str, _: int) -> dict[str, Any]:
        chart = self._tables.chart(record)
        if chart is None:
            self._tell(f"{record.chart} chart", "a picture of it")
            return {key: self._picture(record.picture, record.title)}
        return {key: chart}


def _joined(counts: Sequence[int], edges: Sequence[float]) -> tuple[list[int], list[float]]:
    """As few neighbours joined as give no more bins than W&B takes."""
    each = -(-len(counts) // _MOST_BINS)
    joined = [sum(counts[at : at + each]) for at in range(0, len(counts), each)]
    return joined, [*edges[:-1:each], edges[-1]]


@contextmanager
def _readable(ref: FileRef) -> Iterator[None]:
    """Around reading a picture: `Rejected` for what is none, which is an `OSError` to Pillow."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise Rejected(f"{ref.path} is no picture: {error}") from error
        raise


def _link(source: Path, path: Path) -> None:
    """The same file under a second name; else a link to it, or a copy."""
    path.unlink(missing_ok=True)
    for put in (os.link, os.symlink):
        try:
            put(source.resolve(), path)
        except OSError:
            continue
        return
    shutil.copyfile(source, path)


def _classes(mask: NDArray[Any]) -> list[int]:
    """The numbers in the mask."""
    import numpy as np  # in the delivery process alone, which numbers do not need

    found: list[int] = np.unique(mask).tolist()
    return found

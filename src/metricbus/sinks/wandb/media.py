"""Converts media to the columns of W&B history rows.

W&B puts files into its run's folder, from which its service process uploads them; here they are
links. A table is also an artifact, which contains the images in its cells.
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

from metricbus._common import media_records as media
from metricbus._journal.media_files import MediaFolder, safe_name
from metricbus.errors import RecordsRejectedError
from metricbus.sinks.wandb import names
from metricbus.sinks.wandb.tables import TableBuilder

if TYPE_CHECKING:
    import wandb
    from numpy.typing import NDArray

_MAX_BINS = 512
_MAX_MASK_CLASS = 255
_UNSAFE_CHARACTERS = re.compile(r"[^\w.+=@ -]+")


class MediaConverter:
    """Converts the media in `folder` to columns for one W&B run."""

    def __init__(
        self, run: wandb.Run, folder: MediaFolder, log_fallback: Callable[[str, str], None]
    ) -> None:
        self._run = run
        self._folder = folder
        self._tables = TableBuilder(folder, self._to_image)
        self._log_fallback = log_fallback
        self._max_table_column = names.max_table_column_length(run.id)
        self._paths: dict[media.FileRef, Path] = {}  # of the checked files
        # W&B applies a column's latest labels to all of its images, so labels accumulate here
        self._labels: dict[str, dict[int, str]] = {}
        self._converters: dict[
            type[media.MediumRecord], Callable[[Any, str, int], dict[str, Any]]
        ] = {
            media.HistogramRecord: self._histogram,
            media.ImageRecord: self._image,
            media.TableRecord: self._table,
            media.TextRecord: self._text,
            media.AudioRecord: self._audio,
            media.VideoRecord: self._video,
            media.ChartRecord: self._chart,
            media.FileRecord: self._file,
        }

    def check(self, records: Iterable[media.MediumRecord]) -> None:
        """Check the files of these records, in place of those of earlier calls.

        Raises `MediaError` if a file is missing or has changed since it was logged.
        """
        self._paths.clear()
        for record in records:
            for ref in self._files(record):
                self._paths[ref] = self._folder.path(ref)

    def _files(self, record: media.MediumRecord) -> Iterator[media.FileRef]:
        for value in msgspec.structs.astuple(record):
            if isinstance(value, media.FileRef):
                yield value
            elif isinstance(value, dict):
                yield from (item for item in value.values() if isinstance(item, media.FileRef))
        if isinstance(record, media.TableRecord | media.ChartRecord):
            for row in self._folder.rows(record):
                yield from (cell.file for cell in row if isinstance(cell, media.ImageCell))

    def columns(self, record: media.MediumRecord, number: int) -> dict[str, Any]:
        """Return the columns of a checked record, which becomes history row `number`.

        The first column has the medium itself. Others describe it.
        """
        column = names.column_name(record.name)
        if isinstance(record, media.TableRecord | media.ChartRecord):
            column = names.file_column_name(record.name, self._max_table_column)
        elif isinstance(record, media.ImageRecord | media.AudioRecord | media.VideoRecord):
            column = names.file_column_name(record.name)
        columns = self._converters[type(record)](record, column, number)
        if column != names.column_name(record.name):
            columns[f"{names.PREFIX}name"] = record.name
        return columns

    def _histogram(self, record: media.HistogramRecord, column: str, _: int) -> dict[str, Any]:
        import wandb

        counts, edges = record.counts or [0], record.edges or [0.0, 1.0]
        if record.nan or record.infinite or record.minus_infinite:
            self._log_fallback("histograms with NaN or infinities", "the finite values")
        if len(counts) > _MAX_BINS:
            self._log_fallback(f"histograms with over {_MAX_BINS} bins", "merged bins")
            counts, edges = _merge_bins(counts, edges)
        return {column: wandb.Histogram(np_histogram=(counts, edges))}  # type: ignore[arg-type]

    def _image(self, record: media.ImageRecord, column: str, _: int) -> dict[str, Any]:
        masks = {name: self._mask(ref) for name, ref in record.masks.items()}
        if any(mask.max(initial=0) > _MAX_MASK_CLASS for mask in masks.values()):
            self._log_fallback(
                f"masks with classes above {_MAX_MASK_CLASS}",
                "the image with masks and boxes drawn",
            )
            return {column: self._to_image(record.drawn, record.caption)}
        boxes = self._boxes(record, column) if record.boxes else None
        return {
            column: self._to_image(
                record.file,
                record.caption,
                boxes={"boxes": boxes} if boxes else None,
                masks={
                    name: {
                        "mask_data": mask,
                        "class_labels": _mask_classes(mask) | record.class_labels,
                    }
                    for name, mask in masks.items()
                }
                or None,
            )
        }

    def _to_image(self, ref: media.FileRef, caption: str, **annotations: Any) -> wandb.Image:
        import wandb

        with _image_errors(ref):
            return wandb.Image(str(self._paths[ref]), caption=caption or None, **annotations)

    def _mask(self, ref: media.FileRef) -> NDArray[Any]:
        import numpy as np
        from PIL import Image

        with _image_errors(ref), Image.open(self._paths[ref]) as picture:
            return np.asarray(picture)

    def _boxes(self, record: media.ImageRecord, column: str) -> dict[str, Any]:
        text_numbers = names.text_class_numbers(record)
        labels = self._labels.setdefault(column, {})
        labels.update(record.class_labels)
        data = []
        for box in record.boxes:
            number, text = names.box_class(box, record.class_labels, text_numbers)
            labels[number] = text
            entry: dict[str, Any] = {
                "position": {
                    "minX": box.left,
                    "maxX": box.right,
                    "minY": box.top,
                    "maxY": box.bottom,
                },
                "domain": "pixel",
                "class_id": number,
                "box_caption": box.caption or ("" if box.label is None else text),
            }
            if box.score is not None:
                entry["scores"] = {"score": box.score}
            data.append(entry)
        return {"box_data": data, "class_labels": dict(labels)}

    def _table(self, record: media.TableRecord, column: str, _: int) -> dict[str, Any]:
        part = {f"{names.PREFIX}table": record.table, f"{names.PREFIX}first_row": record.first_row}
        return {column: self._tables.table(record.columns, self._folder.rows(record))} | part

    def _text(self, record: media.TextRecord, column: str, _: int) -> dict[str, Any]:
        return {column: self._folder.text(record.file)}

    def _audio(self, record: media.AudioRecord, column: str, _: int) -> dict[str, Any]:
        import wandb

        path = str(self._paths[record.file])
        rate, caption = record.sample_rate or None, record.caption or None
        return {column: wandb.Audio(path, sample_rate=rate, caption=caption)}

    def _video(self, record: media.VideoRecord, column: str, number: int) -> dict[str, Any]:
        import wandb

        path = self._paths[record.file]
        if path.suffix[1:].lower() not in wandb.Video.EXTS:
            format = path.suffix or record.format
            self._log_fallback(f"{format} videos", "the file and its path as text")
            return self._save(record, path.name, column, number)
        return {column: wandb.Video(str(path), caption=record.caption or None)}

    def _file(self, record: media.FileRecord, column: str, number: int) -> dict[str, Any]:
        return self._save(record, PurePosixPath(record.origin).name, column, number)

    def _save(
        self, record: media.FileRecord | media.VideoRecord, name: str, column: str, number: int
    ) -> dict[str, Any]:
        """Link the file into the W&B run's files, and return its path there as a column."""
        root = Path(self._run.dir)
        safe = _UNSAFE_CHARACTERS.sub("_", name)[-60:].strip(".")
        path = root / names.RENAMED_PREFIX / safe_name(record.name) / str(number) / (safe or "file")
        path.parent.mkdir(parents=True, exist_ok=True)
        _link(self._paths[record.file], path)
        self._run.save(path, base_path=root, policy="now", glob=False)
        return {column: path.relative_to(root).as_posix()}

    def _chart(self, record: media.ChartRecord, column: str, _: int) -> dict[str, Any]:
        chart = self._tables.chart(record)
        if chart is None:
            self._log_fallback(f"this {record.chart} chart", "an image of it")
            return {column: self._to_image(record.picture, record.title)}
        return {column: chart}


def _merge_bins(counts: Sequence[int], edges: Sequence[float]) -> tuple[list[int], list[float]]:
    """Merge as few neighboring bins as possible to get at most `_MAX_BINS`."""
    size = -(-len(counts) // _MAX_BINS)
    merged = [sum(counts[start : start + size]) for start in range(0, len(counts), size)]
    return merged, [*edges[:-1:size], edges[-1]]


def _mask_classes(mask: NDArray[Any]) -> dict[int, str]:
    """Return names for all class numbers in a mask, as W&B names classes without a label."""
    import numpy as np

    return {number: f"class_{number}" for number in np.unique(mask).tolist()}


@contextmanager
def _image_errors(ref: media.FileRef) -> Iterator[None]:
    """Raise `RecordsRejectedError` if Pillow raises an `OSError` for a file that is no image."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise RecordsRejectedError(f"{ref.path} is not an image: {error}") from error
        raise


def _link(source: Path, path: Path) -> None:
    """Create a hard link to the file; failing that, a symbolic link or a copy."""
    path.unlink(missing_ok=True)
    for link in (os.link, os.symlink):
        try:
            link(source.resolve(), path)
        except OSError:
            continue
        return
    shutil.copyfile(source, path)

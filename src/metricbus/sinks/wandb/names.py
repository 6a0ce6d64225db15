"""Maps names to what W&B accepts: projects, run ids, tags, columns, class numbers."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Mapping, Sequence

from metricbus._common.media_records import Box, ImageRecord
from metricbus._common.sink_urls import short_hash
from metricbus._journal.media_files import safe_name
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus.sinks.wandb")

PREFIX = "metricbus/"  # of the sink's own columns
RENAMED_PREFIX = "logged/"
CHARTS_PREFIX = "Custom Chart Tables/"  # W&B stores the data of its charts there
STEP, EPOCH, TIME = f"{PREFIX}step", f"{PREFIX}epoch", f"{PREFIX}time"

_MAX_PROJECT_LENGTH = _MAX_ARTIFACT_LENGTH = 128
# W&B allows 128, but a table's artifact is named after the run's id and the column
_MAX_RUN_ID_LENGTH = 64
_MAX_TAG_LENGTH = 64
_INVALID_IN_PROJECT = "/\\#?%:"
_CRASHES_WANDB = "\\"  # a column with this name ends wandb-core 0.31
# characters that some file systems forbid, or that W&B treats as patterns
_INVALID_IN_FILE_NAME = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|\[\]#%]')
_FIRST_TEXT_CLASS, _TEXT_CLASSES = 1000, 1_000_000
_UNLABELED = "unlabelled"
_MAX_FILE_NAME_BYTES = 180  # W&B adds up to 60


def check_project(project: str) -> None:
    """Raise `ConfigError` if W&B does not accept this project name."""
    if set(_INVALID_IN_PROJECT) & set(project) or len(project) > _MAX_PROJECT_LENGTH:
        raise ConfigError(
            f"{project!r:.160} is not a valid W&B project name: it may have up to "
            f"{_MAX_PROJECT_LENGTH} characters and none of {_INVALID_IN_PROJECT}; choose one with "
            "wandb:PROJECT or wandb://TEAM/PROJECT"
        )


def run_id(id: str) -> str:
    """Return an id that W&B accepts: without dots, and not too long."""
    valid = id.replace(".", "-")
    if valid == id and len(id) <= _MAX_RUN_ID_LENGTH:
        return id
    return f"{valid[: _MAX_RUN_ID_LENGTH - 9]}-{short_hash(id)}"


def short_tags(tags: Sequence[str]) -> list[str]:
    """Return the distinct tags, each cut to W&B's maximum length."""
    for tag in tags:
        if len(tag) > _MAX_TAG_LENGTH:
            _log.warning("tag %r is cut to %s characters, W&B's limit", tag, _MAX_TAG_LENGTH)
    return list(dict.fromkeys(tag[:_MAX_TAG_LENGTH] for tag in tags if tag))


def column_name(name: str) -> str:
    """Return the column for a name, a different one for each name."""
    if name == _CRASHES_WANDB:
        return RENAMED_PREFIX + "backslash"
    is_reserved = name.startswith(("_", PREFIX, RENAMED_PREFIX, CHARTS_PREFIX))
    return RENAMED_PREFIX + name if is_reserved else name


def file_column_name(name: str, max_length: int = _MAX_ARTIFACT_LENGTH) -> str:
    """Return the column for a medium whose files W&B names after the column.

    A name that is too long, or no valid path inside a folder, is replaced by its safe characters
    and a hash. The column differs from that of each other name, and from all of `column_name`.
    """
    column = column_name(name)
    if len(column) <= max_length and _is_valid_path(column):
        return column
    readable, _, hash = safe_name(name).rpartition("-")
    return f"{RENAMED_PREFIX}{readable[: max_length - len(RENAMED_PREFIX) - 1 - len(hash)]}-{hash}"


def max_table_column_length(run_id: str) -> int:
    """Return how long the column of a table or chart may be in the W&B run with this id.

    W&B makes an artifact's name from the two and a hash, and adds a prefix and suffix for a chart.
    """
    return _MAX_ARTIFACT_LENGTH - len(f"run-{run_id}-{CHARTS_PREFIX}_table-123456")


def _is_valid_path(column: str) -> bool:
    return not _INVALID_IN_FILE_NAME.search(column) and all(
        part.strip(".") and len(part.encode()) <= _MAX_FILE_NAME_BYTES for part in column.split("/")
    )


def text_class_numbers(record: ImageRecord) -> dict[str, int]:
    """Return class numbers for the string labels of boxes, unused by the image's other classes.

    A number is derived from its string, because W&B has one list of classes for all images of a
    column.
    """
    numbers = {text: number for number, text in record.class_labels.items()}
    labels = {_UNLABELED if box.label is None else box.label for box in record.boxes}
    taken = {*record.class_labels, *(label for label in labels if isinstance(label, int))}
    for text in sorted(label for label in labels if isinstance(label, str)):
        hashed = _FIRST_TEXT_CLASS + zlib.crc32(text.encode()) % _TEXT_CLASSES
        number = numbers.get(text, hashed)
        while text not in numbers and number in taken:
            number += 1
        numbers[text] = number
        taken.add(number)
    return numbers


def box_class(
    box: Box, labels: Mapping[int, str], text_numbers: Mapping[str, int]
) -> tuple[int, str]:
    """Return the class number and class name of a box."""
    if isinstance(box.label, int):
        return box.label, labels.get(box.label, str(box.label))
    text = _UNLABELED if box.label is None else box.label
    return text_numbers[text], text

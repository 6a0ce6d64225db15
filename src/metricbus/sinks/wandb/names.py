"""Names as Weights & Biases takes them: of projects, runs, tags, columns, and classes."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

from metricbus._common.media_records import Box, ImageRecord
from metricbus._common.sink_urls import digest
from metricbus._journal.media_files import safe_name
from metricbus.errors import ConfigError

_log = logging.getLogger("metricbus.sinks.wandb")

OURS = "metricbus/"
RENAMED = "logged/"
CHARTS = "Custom Chart Tables/"  # where W&B puts the data of its charts
STEP, EPOCH, TIME = f"{OURS}step", f"{OURS}epoch", f"{OURS}time"

_LONGEST_PROJECT = _LONGEST_ARTIFACT = 128
_LONGEST_ID = 64  # W&B takes 128, but a table's name has the run's id in it, and the column
_LONGEST_TAG = 64
_NOT_IN_PROJECTS = "/\\#?%:"
_KILLS_WANDB = "\\"  # a column of this name ends wandb-core 0.31
_NOT_IN_FILES = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|\[\]#%]')  # not everywhere, or patterns
_FIRST_NUMBER, _NUMBERS = 1000, 1_000_000  # of classes that have a text and no number
_UNLABELLED = "unlabelled"
_LONGEST_PART = 180  # bytes of a file's name; W&B adds up to 60


def check_project(project: str) -> None:
    """`ConfigError` if W&B does not take this as a project's name."""
    found = sorted(set(_NOT_IN_PROJECTS) & set(project))
    if found or len(project) > _LONGEST_PROJECT:
        raise ConfigError(
            f"{project!r:.160} is no name for a W&B project: it takes up to {_LONGEST_PROJECT} "
            f"characters and none of {_NOT_IN_PROJECTS}; name one by wandb:PROJECT or "
            "wandb://TEAM/PROJECT"
        )


def run_id(id: str) -> str:
    """The run's id as W&B takes it: without dots, and not too long."""
    plain = id.replace(".", "-")
    if plain == id and len(id) <= _LONGEST_ID:
        return id
    return f"{plain[: _LONGEST_ID - 9]}-{digest(id)}"


def short_tags(tags: Sequence[str]) -> list[str]:
    """Each tag once, cut to what W&B takes."""
    for tag in tags:
        if len(tag) > _LONGEST_TAG:
            _log.warning("tag %r is cut to the %s characters that W&B takes", tag, _LONGEST_TAG)
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag))


def key_of(name: str) -> str:
    """The column for a name; no two names share one."""
    if name == _KILLS_WANDB:
        return RENAMED + "backslash"
    return RENAMED + name if name.startswith(("_", OURS, RENAMED, CHARTS)) else name


def file_key(name: str, longest: int = _LONGEST_ARTIFACT) -> str:
    """The column for a medium whose files W&B names after it.

    A name that is no path within a folder, or too long, is replaced by its harmless part and a
    hash; no two names share a column, nor does such a one meet any of `key_of`.
    """
    key = key_of(name)
    if len(key) <= longest and _is_path(key):
        return key
    readable, _, hashed = safe_name(name).rpartition("-")
    return f"{RENAMED}{readable[: longest - len(RENAMED) - 1 - len(hashed)]}-{hashed}"


def longest_of_tables(run: str) -> int:
    """How long the column of a table or chart of the run with this id (W&B's) may be.

    W&B makes a name of an artifact from both, adds a hash, and to a chart's what says so.
    """
    return _LONGEST_ARTIFACT - len(f"run-{run}-{CHARTS}_table-123456")


def _is_path(key: str) -> bool:
    return not _NOT_IN_FILES.search(key) and all(
        part.strip(".") and len(part.encode()) <= _LONGEST_PART for part in key.split("/")
    )


def numbers_of_texts(record: ImageRecord) -> dict[str, int]:
    """Class numbers for boxes that are labelled by a text; no other class of the picture has them.

    They are made from the text, since W&B knows one list of classes for all pictures of a column.
    """
    numbers = {text: number for number, text in record.class_labels.items()}
    labels = {_UNLABELLED if box.label is None else box.label for box in record.boxes}
    taken = {*record.class_labels, *(label for label in labels if isinstance(label, int))}
    for text in sorted(label for label in labels if isinstance(label, str)):
        number = numbers.get(text, _FIRST_NUMBER + zlib.crc32(text.encode()) % _NUMBERS)
        while text not in numbers and number in taken:
            number += 1
        numbers[text] = number
        taken.add(number)
    return numbers


def class_of(
    box: Box, labels: Mapping[int, str], numbers_of_texts: Mapping[str, int]
) -> tuple[int, str]:
    """The number and the name of what is in the box."""
    if isinstance(box.label, int):
        return box.label, labels.get(box.label, str(box.label))
    text = _UNLABELLED if box.label is None else box.label
    return numbers_of_texts[text], text


def class_names(numbers: Iterable[int], labels: Mapping[int, str]) -> dict[int, str]:
    """Names for all of the classes, as W&B itself makes them for those without."""
    return {int(number): f"class_{number}" for number in numbers} | dict(labels)

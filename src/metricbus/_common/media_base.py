"""What every kind of medium has in common: what `log()` takes of it, and how a worker encodes that.

`log()` calls `_capture` on the caller's thread: it checks types and shapes, and makes one copy. What
that gives back goes to the media worker, which calls `encode` with the files' writer at hand.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from metricbus._common.media_records import FileRef, MediumRecord
from metricbus._common.records import Medium
from metricbus.errors import MissingPackageError

R = TypeVar("R", bound=MediumRecord)

_log = logging.getLogger("metricbus.media")


class LogContext(NamedTuple):
    """Under which name, and where, a medium was logged."""

    name: str
    step: int
    epoch: int
    time: int


def _nothing() -> None:
    pass


class EncodeJob(NamedTuple):
    """What `log()` took: about so many bytes, and what makes the record of them.

    What stands for several media gives a list of records, and says in `media` how many they are.
    `commit` is called when nothing of the call can fail any more, `undo` if something has.
    """

    nbytes: int
    encode: Callable[[EncodeContext], Medium | list[Medium]]
    commit: Callable[[], None] = _nothing
    undo: Callable[[], None] = _nothing
    media: int = 1


class Encoder(Protocol):
    """Who takes what `log()` took, and makes records of it."""

    def put(self, stamp: LogContext, taken: EncodeJob) -> None:
        """Takes a medium."""


class FileWriter(Protocol):
    """Writes the files of media into the run's folder."""

    def save(self, kind: str, name: str, step: int, suffix: str, content: bytes) -> FileRef:
        """Writes `content` to a new file."""

    def copy(self, kind: str, name: str, step: int, source: Path) -> FileRef:
        """Copies the user's file."""


class EncodeContext:
    """One medium on its way to a record: where it stands, and where its files go."""

    def __init__(self, stamp: LogContext, writer: FileWriter, told: set[tuple[str, str]]) -> None:
        self.stamp = stamp
        self._writer = writer
        self._told = told

    def save(self, kind: str, suffix: str, content: bytes) -> FileRef:
        """Writes a file of this medium."""
        return self._writer.save(kind, self.stamp.name, self.stamp.step, suffix, content)

    def copy(self, kind: str, source: Path) -> FileRef:
        """Copies a file that the user has."""
        return self._writer.copy(kind, self.stamp.name, self.stamp.step, source)

    def tell(self, what: str) -> None:
        """Warns of a repair, once for each name."""
        key = self.stamp.name, what
        if key not in self._told:
            self._told.add(key)
            _log.warning("%r at step %d: %s", self.stamp.name, self.stamp.step, what)

    def record(self, kind: type[R], **fields: Any) -> R:
        """The record of the medium; `name` among the fields is for one of several."""
        return kind(**self.stamp._asdict() | fields)


class MediaValue:
    """The base of `Histogram`, `Image` and all the others that `log()` takes beside numbers."""

    def _capture(self, name: str) -> EncodeJob | None:
        """Checks and copies what was given, for the metric `name`; None if there is nothing new.

        Raises `TypeError` or `ValueError` that name the metric.
        """
        raise TypeError(f"metric {name!r} was given a {type(self).__name__}, which has no content")

    def _capture_for_run(self, run: str, name: str) -> EncodeJob | None:
        """The same for what differs by the run to which it goes."""
        return self._capture(name)


def about(name: str) -> str:
    """How a message about a metric begins; empty where its name is not known yet."""
    return f"metric {name!r}: " if name else ""


def check_file(name: str, path: Path) -> os.stat_result:
    """The state of a regular file; `ValueError` if it is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: no name of a file can be like that
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"metric {name!r}: {str(path)!r:.300} cannot be read: {why}; give the path of a file"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise ValueError(f"metric {name!r}: {path} is {what}; give the path of a file")
    return found


def check_format(name: str, path: Path, what: str, suffixes: Sequence[str]) -> None:
    """`ValueError` if it is no regular file with one of these suffixes; `what` it should be."""
    check_file(name, path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"metric {name!r}: {path} is no {what}; what is taken is {', '.join(suffixes)}"
        )


def check_package(name: str, package: str) -> None:
    """`MissingPackageError` if a package that this kind needs is not installed."""
    if find_spec(package) is None:
        raise MissingPackageError(
            f"metric {name!r} needs {package}, which is not installed: "
            "pip install 'metricbus[media]'"
        )


def check_text(name: str, what: str, text: object) -> str:
    """`text` if it is text that UTF-8 can express."""
    if not isinstance(text, str):
        raise TypeError(f"{about(name)}{what} must be text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{about(name)}{what} cannot be written as UTF-8: {error}") from error
    return str.__str__(text)  # of an enum the text, not the member's name


def as_path(data: object) -> Path | None:
    """The path that `data` is; None if it is something else."""
    return Path(data).absolute() if isinstance(data, str | os.PathLike) else None

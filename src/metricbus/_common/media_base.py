"""The base class of all media, and what passes between `log()`, the media worker and the encoders.

`log()` calls `MediaValue._capture` on the caller's thread, which validates the data and copies it
once. The resulting `EncodeJob` goes to the media worker, which calls `encode` with an
`EncodeContext` and gets back the journal's record.

This module lives in `_common`, and imports no numpy, because the hot path and the validation of
values need it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from metricbus._common.media_records import FileRef, Medium, MediumRecord
from metricbus._common.throttled_log import OnceLogger

R = TypeVar("R", bound=MediumRecord)


class LogContext(NamedTuple):
    """The name, step, epoch and time (in ns since 1970) under which a medium was logged."""

    name: str
    step: int
    epoch: int
    time: int


class EncodeJob(NamedTuple):
    """The captured data of one `log()` call, and the function that encodes it.

    `nbytes` is the approximate size of the captured data. `encode` returns one record, or a list of
    `media` records. `commit` is called once nothing in the `log()` call can fail any more, `undo`
    if something in it failed.
    """

    nbytes: int
    encode: Callable[[EncodeContext], Medium | list[Medium]]
    commit: Callable[[], None] = lambda: None
    undo: Callable[[], None] = lambda: None
    media: int = 1


class JobQueue(Protocol):
    """A queue of encode jobs, such as the media worker's."""

    def put(self, context: LogContext, job: EncodeJob) -> None:
        """Submit a job for encoding."""


class FileWriter(Protocol):
    """A writer of media files in the run folder."""

    def save(self, kind: str, name: str, step: int, suffix: str, content: bytes) -> FileRef:
        """Write `content` to a new file."""

    def copy(self, kind: str, name: str, step: int, source: Path) -> FileRef:
        """Copy the file at `source`."""


class EncodeContext:
    """The log context and the file writer with which one medium is encoded.

    Contexts of one run share `once`, which logs their warnings.
    """

    def __init__(self, log_context: LogContext, writer: FileWriter, once: OnceLogger) -> None:
        self.log_context = log_context
        self._writer = writer
        self._once = once

    def save(self, kind: str, suffix: str, content: bytes) -> FileRef:
        """Write a file of this medium into the folder `media/<kind>`."""
        name, step, *_ = self.log_context
        return self._writer.save(kind, name, step, suffix, content)

    def copy(self, kind: str, source: Path) -> FileRef:
        """Copy the user's file `source` into the folder `media/<kind>`."""
        return self._writer.copy(kind, self.log_context.name, self.log_context.step, source)

    def warn_once(self, message: str) -> None:
        """Log a warning about the data, once per metric name and message."""
        name, step, *_ = self.log_context
        self._once.warn("%r at step %d: %s", name, step, message, key=f"{name}\n{message}")

    def record(self, kind: type[R], **fields: Any) -> R:
        """Return a record of this medium; `fields` override the log context, `name` included."""
        return kind(**self.log_context._asdict() | fields)


class MediaValue:
    """Base class of `Histogram`, `Image` and the other non-numeric values that `log()` accepts."""

    def _capture(self, name: str) -> EncodeJob | None:
        """Validate and copy the data for the metric `name`; return None if nothing is new.

        Raises `TypeError` or `ValueError`, naming the metric, if the data are invalid.
        """
        raise TypeError(f"metric {name!r} was given a {type(self).__name__}, which has no content")

    def _capture_for_run(self, run: str, name: str) -> EncodeJob | None:
        """Like `_capture`, for media whose content depends on the run they are logged to."""
        return self._capture(name)


def metric_prefix(name: str) -> str:
    """Return the beginning of an error message about a metric; empty if it has no name yet."""
    return f"metric {name!r}: " if name else ""


def check_file(name: str, path: Path) -> os.stat_result:
    """Return the status of a regular file; raise `ValueError` if `path` is not one."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte, for example
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"metric {name!r}: cannot read {str(path)!r:.300}: {reason}; expected the path of a "
            "regular file"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ValueError(f"metric {name!r}: {path} is {kind}; expected the path of a regular file")
    return status


def media_path(
    name: str, data: object, kind: str = "a file", suffixes: Sequence[str] = ()
) -> Path | None:
    """Return `data` as an absolute path, or None if it is not a path.

    Raises `ValueError` unless the path is a regular file with one of the `suffixes`, if there are
    any; `kind` names the expected file in the message.
    """
    path = as_path(data)
    if path is not None:
        check_file(name, path)
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(
                f"metric {name!r}: {path} is not {kind}; supported: {', '.join(suffixes)}"
            )
    return path


def check_text(name: str, what: str, text: object) -> str:
    """Return `text` as a plain `str`; `what` names it in messages.

    Raises `TypeError` if it is not a string, `ValueError` if UTF-8 cannot encode it.
    """
    if not isinstance(text, str):
        raise TypeError(f"{metric_prefix(name)}{what} must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{metric_prefix(name)}{what} cannot be encoded as UTF-8: {error}"
        ) from error
    return str.__str__(text)  # str(text) would return the member's name for a str-based enum


def as_path(data: object) -> Path | None:
    """Return `data` as an absolute path, or None if it is not a string or path object."""
    return Path(data).absolute() if isinstance(data, str | os.PathLike) else None

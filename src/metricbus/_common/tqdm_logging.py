"""Lines of text that go to the terminal where tqdm's progress bars are, above the bars.

Nothing here imports tqdm: where nobody has, there are no bars.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def bars_cleared(stream: object) -> Iterator[None]:
    """Takes the bars off `stream` while something is written to it, and puts them back."""
    std = sys.modules.get("tqdm.std")
    if std is None or not len(std.tqdm._instances):
        yield
        return
    with bar_lock(std):
        if all(getattr(bar, "gui", True) for bar in std.tqdm._instances):  # a notebook's
            yield
        else:
            with std.tqdm.external_write_mode(file=stream, nolock=True):
                yield


def bar_lock(std: Any) -> Any:
    """What keeps threads from drawing at once, given the module `tqdm.std`.

    tqdm's own lock, as soon as it makes one, has this one in it, and also one between processes.
    Making that would settle how multiprocessing starts its processes, which is the user's choice.
    """
    return getattr(std.tqdm, "_lock", None) or std.TqdmDefaultWriteLock.th_lock


def renew_lock_in_child() -> None:
    """What a fork does: a thread that is not there may hold the lock."""
    std = sys.modules.get("tqdm.std")
    if std is not None:
        std.TqdmDefaultWriteLock.th_lock = threading.RLock()


def is_terminal(stream: Any) -> bool:
    """Whether this stream, such as `sys.stderr`, is a terminal; it may be none, or closed."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


_emit = logging.StreamHandler.emit


class TqdmStreamHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr, above the progress bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record's line."""
        with bars_cleared(self.stream):
            _emit(self, record)


class ConsoleHandlers:
    """Has all logging handlers that write to the terminal write above the bars, for a while.

    It does not replace them, so that what is configured meanwhile stays: their `emit` is wrapped.
    That of all `StreamHandler`s is, at their class: `logging.warning()` may make one and write to
    it at once. Of others, those that there are.
    """

    def __init__(self) -> None:
        self._wrapped: list[tuple[logging.Handler, Any]] = []

    def wrap(self) -> None:
        """Wraps those that there are now and that are not wrapped yet."""
        logging.StreamHandler.emit = _emit_above_bars  # type: ignore[assignment,method-assign]
        for handler in _handlers():
            if "emit" not in vars(handler) and type(handler).emit is not _emit_above_bars:
                wrapper = _above_bars(handler)
                self._wrapped.append((handler, wrapper))  # first: Ctrl-C may come in between
                vars(handler)["emit"] = wrapper

    def unwrap(self) -> None:
        """Leaves all of them as they were."""
        if logging.StreamHandler.emit is _emit_above_bars:
            logging.StreamHandler.emit = _emit  # type: ignore[method-assign]
        for one in list(self._wrapped):
            handler, wrapper = one
            if vars(handler).get("emit") is wrapper:
                del vars(handler)["emit"]
            with suppress(ValueError):  # another thread was faster
                self._wrapped.remove(one)


def _emit_above_bars(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
    if handler.stream in (sys.stderr, sys.stdout):
        with bars_cleared(handler.stream):
            _emit(handler, record)
    else:
        _emit(handler, record)


def _above_bars(handler: logging.Handler) -> Any:
    emit = handler.emit

    def emit_above_bars(record: logging.LogRecord) -> None:
        with bars_cleared(_stream_of(handler)):
            emit(record)

    return emit_above_bars


def _handlers() -> Iterator[logging.Handler]:
    """Those that write to the terminal, as far as can be seen: logging's own, and Rich's."""
    loggers: list[Any] = [logging.root, *list(logging.root.manager.loggerDict.values())]
    found = [handler for one in loggers for handler in getattr(one, "handlers", ())]
    if logging.lastResort is not None:
        found.append(logging.lastResort)
    for handler in dict.fromkeys(found):
        stream = _stream_of(handler)
        if stream is not None and stream in (sys.stderr, sys.stdout):
            yield handler


def _stream_of(handler: logging.Handler) -> object:
    console = getattr(handler, "console", None)
    return getattr(handler, "stream", None) or getattr(console, "file", None)

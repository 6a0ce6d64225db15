"""Writing lines to the terminal above tqdm's progress bars.

Nothing here imports tqdm: if no other code has imported it, there are no bars.
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
    """Clear the bars from `stream` while something is written to it, then redraw them."""
    std = sys.modules.get("tqdm.std")
    if std is None or not len(std.tqdm._instances):
        yield
        return
    with bar_lock(std):
        if all(getattr(bar, "gui", True) for bar in std.tqdm._instances):  # bars of a notebook
            yield
        else:
            with std.tqdm.external_write_mode(file=stream, nolock=True):
                yield


def bar_lock(std: Any) -> Any:
    """Return the lock that serializes drawing between threads; `std` is the module `tqdm.std`.

    tqdm creates its own lock lazily; that one contains this one and a lock between processes.
    Creating it here would fix the start method of multiprocessing, which is the user's choice.
    """
    return getattr(std.tqdm, "_lock", None) or std.TqdmDefaultWriteLock.th_lock


def renew_lock_in_child() -> None:
    """Replace tqdm's thread lock after a fork: a thread missing in the child may have held it."""
    std = sys.modules.get("tqdm.std")
    if std is not None:
        std.TqdmDefaultWriteLock.th_lock = threading.RLock()


def is_terminal(stream: Any) -> bool:
    """Check whether a stream such as `sys.stderr` is a terminal; it may be None or closed."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


_original_emit = logging.StreamHandler.emit


class TqdmStreamHandler(logging.StreamHandler[TextIO]):
    """Handler that writes to stderr, above any progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as one line."""
        with bars_cleared(self.stream):
            _original_emit(self, record)


class ConsoleHandlers:
    """Makes all logging handlers that write to the terminal write above the bars, temporarily.

    The handlers stay in place, so logging can be configured meanwhile; only their `emit` is
    wrapped. That of `StreamHandler` is wrapped in the class, because `logging.warning()` may create
    such a handler and write to it at once. Other classes are wrapped per handler.
    """

    def __init__(self) -> None:
        self._wrapped: list[tuple[logging.Handler, Any]] = []

    def wrap(self) -> None:
        """Wrap all current handlers that are not wrapped yet."""
        logging.StreamHandler.emit = _emit_above_bars  # type: ignore[assignment,method-assign]
        for handler in _terminal_handlers():
            if "emit" not in vars(handler) and type(handler).emit is not _emit_above_bars:
                wrapper = _wrap_emit(handler)
                # Registered first, because Ctrl-C may interrupt between the two statements.
                self._wrapped.append((handler, wrapper))
                vars(handler)["emit"] = wrapper

    def unwrap(self) -> None:
        """Restore all handlers."""
        if logging.StreamHandler.emit is _emit_above_bars:
            logging.StreamHandler.emit = _original_emit  # type: ignore[method-assign]
        for entry in list(self._wrapped):
            handler, wrapper = entry
            if vars(handler).get("emit") is wrapper:
                del vars(handler)["emit"]
            with suppress(ValueError):  # another thread has removed it
                self._wrapped.remove(entry)


def _emit_above_bars(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
    if handler.stream in (sys.stderr, sys.stdout):
        with bars_cleared(handler.stream):
            _original_emit(handler, record)
    else:
        _original_emit(handler, record)


def _wrap_emit(handler: logging.Handler) -> Any:
    emit = handler.emit

    def emit_above_bars(record: logging.LogRecord) -> None:
        with bars_cleared(_stream_of(handler)):
            emit(record)

    return emit_above_bars


def _terminal_handlers() -> Iterator[logging.Handler]:
    """Yield the known handlers that write to the terminal: those of logging, and Rich's."""
    loggers: list[Any] = [logging.root, *list(logging.root.manager.loggerDict.values())]
    handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    if logging.lastResort is not None:
        handlers.append(logging.lastResort)
    for handler in dict.fromkeys(handlers):
        stream = _stream_of(handler)
        if stream is not None and stream in (sys.stderr, sys.stdout):
            yield handler


def _stream_of(handler: logging.Handler) -> object:
    console = getattr(handler, "console", None)
    return getattr(handler, "stream", None) or getattr(console, "file", None)

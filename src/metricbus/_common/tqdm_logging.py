"""Logging handlers that write to the terminal above tqdm's progress bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

from metricbus._compat.cpython import all_handlers, replace_stream_emit
from metricbus._compat.tqdm import bars_cleared


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
        replace_stream_emit(_emit_above_bars)
        for handler in _terminal_handlers():
            if "emit" not in vars(handler) and type(handler).emit is not _emit_above_bars:
                wrapper = _wrap_emit(handler)
                # Registered first, because Ctrl-C may interrupt between the two statements.
                self._wrapped.append((handler, wrapper))
                vars(handler)["emit"] = wrapper

    def unwrap(self) -> None:
        """Restore all handlers."""
        if logging.StreamHandler.emit is _emit_above_bars:
            replace_stream_emit(_original_emit)
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
    for handler in all_handlers():
        stream = _stream_of(handler)
        if stream is not None and stream in (sys.stderr, sys.stdout):
            yield handler


def _stream_of(handler: logging.Handler) -> object:
    console = getattr(handler, "console", None)
    return getattr(handler, "stream", None) or getattr(console, "file", None)

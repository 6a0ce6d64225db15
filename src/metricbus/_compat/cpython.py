"""CPython's standard library: the handlers of all loggers, and the end of worker processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from metricbus._compat.degrade import degrading


def replace_stream_emit(emit: Any) -> None:
    """Let `emit` write the records of all handlers whose class does not override it.

    It replaces the method of the class, because `logging.warning()` may create a handler and write
    to it at once.
    """
    with degrading(
        "Python",
        "logging.StreamHandler.emit",
        "log lines of handlers that are created while a progress bar is shown may break the bar",
    ):
        logging.StreamHandler.emit = emit  # type: ignore[method-assign]


def all_handlers() -> list[logging.Handler]:
    """Return the handlers of all loggers, and the one that logging uses if there are none."""
    loggers: list[Any] = [logging.getLogger()]
    with degrading(
        "Python",
        "logging.Logger.manager.loggerDict",
        "log lines of handlers that are not those of the root logger may break progress bars",
    ):
        loggers += logging.getLogger().manager.loggerDict.values()
    handlers = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    return list(dict.fromkeys(handlers + [logging.lastResort] * (logging.lastResort is not None)))


def call_at_worker_end(function: Callable[[], object]) -> None:
    """Call the function at the end of this process if it is a worker of multiprocessing.

    A worker ends without running `atexit` functions, but runs its finalizers.
    """
    # Without the import of multiprocessing, this process is no worker.
    parent_process = getattr(sys.modules.get("multiprocessing"), "parent_process", lambda: None)
    if parent_process() is None:
        return
    with degrading(
        "Python",
        "multiprocessing.util.Finalize",
        "a bus in a worker process is not closed at its end unless close() is called",
    ):
        from multiprocessing.util import Finalize

        Finalize(None, function, exitpriority=100)

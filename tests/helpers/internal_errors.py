"""Makes a test fail at once if a thread of metricbus has ended because of a programming error.

Such a thread logs the error with its traceback, which metricbus does for no other reason.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

_LOGGERS = ("metricbus.collector", "metricbus.delivery")


class InternalErrors(logging.Filter):
    """The internal errors of a test. Unless they are `expected`, the first one ends the test.

    This is a filter and not a handler, because some tests are about the handlers of the loggers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expected = False
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Note an internal error, and interrupt the test, which may be waiting for the thread."""
        if record.levelno >= logging.ERROR and record.exc_info:
            self.records.append(record)
            main_thread = threading.main_thread().ident
            if not self.expected and main_thread is not None:
                signal.pthread_kill(main_thread, signal.SIGUSR1)
        return True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the loggers, and interrupt the test after an unexpected error."""
        previous = signal.signal(signal.SIGUSR1, self._interrupt)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)
        try:
            yield
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(self)
            signal.signal(signal.SIGUSR1, previous)

    def check(self) -> None:
        """Fail if there was an unexpected error, also if the interrupt has been swallowed."""
        if self.records and not self.expected:
            pytest.fail(_description(self.records[0]), pytrace=False)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        raise pytest.fail.Exception(_description(self.records[0]))


def _description(record: logging.LogRecord) -> str:
    text = logging.Formatter().format(record)
    return f"the thread {record.threadName} has ended after an internal error: {text}"

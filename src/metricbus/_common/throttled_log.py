"""Warnings that do not flood: at most one a minute from each place that complains."""

from __future__ import annotations

import logging
import time

_EVERY = 60.0


class ThrottledLogger:
    """Warns on one logger, and keeps silent for a while after each warning."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last = -_EVERY

    def warn(self, message: str, *args: object) -> bool:
        """Warns, unless that was done a short while ago; whether it did."""
        if time.monotonic() - self._last < _EVERY:
            return False
        self._last = time.monotonic()
        self._logger.warning(message, *args)
        return True

    def forget(self) -> None:
        """The next one is told at once: what was complained of is over."""
        self._last = -_EVERY

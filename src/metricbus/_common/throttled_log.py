"""Rate-limited warnings."""

from __future__ import annotations

import logging
import math
import time

_MAX_KEYS = 1000


class ThrottledLogger:
    """Logs at most one warning per minute; create one for each kind of warning."""

    _interval_secs = 60.0

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: dict[str, float] = {}

    def warn(self, message: str, *args: object, key: str = "") -> bool:
        """Log a warning unless one with this key was logged within the last minute.

        Returns whether it was logged. After a thousand keys, only warnings with these are logged.
        """
        now = time.monotonic()
        last = self._last.get(key, -self._interval_secs if len(self._last) < _MAX_KEYS else now)
        if now - last < self._interval_secs:
            return False
        self._last[key] = now
        self._logger.warning(message, *args)
        return True

    def reset(self) -> None:
        """Log the next warning without delay, because the previous problem is over."""
        self._last.clear()


class OnceLogger(ThrottledLogger):
    """Logs each warning once; `key` tells them apart."""

    _interval_secs = math.inf

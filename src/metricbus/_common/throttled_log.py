"""Rate-limited warnings."""

from __future__ import annotations

import logging
import time

_INTERVAL = 60.0  # seconds
_MAX_KEYS = 1000


class ThrottledLogger:
    """Logs at most one warning per minute; create one for each kind of warning."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: dict[str, float] = {}

    def warn(self, message: str, *args: object, key: str = "") -> bool:
        """Log a warning unless one with this key was logged within the last minute.

        Returns whether it was logged. After a thousand keys, only warnings with these are logged.
        """
        now = time.monotonic()
        last = self._last.get(key, -_INTERVAL if len(self._last) < _MAX_KEYS else now)
        if now - last < _INTERVAL:
            return False
        self._last[key] = now
        self._logger.warning(message, *args)
        return True

    def reset(self) -> None:
        """Log the next warning without delay, because the previous problem is over."""
        self._last.clear()

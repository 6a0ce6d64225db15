"""Rate-limited warnings."""

from __future__ import annotations

import logging
import time

_INTERVAL = 60.0  # seconds


class ThrottledLogger:
    """Logs at most one warning per minute; create one for each kind of warning."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last = -_INTERVAL

    def warn(self, message: str, *args: object) -> bool:
        """Log a warning unless one was logged within the last minute; return whether it was."""
        if time.monotonic() - self._last < _INTERVAL:
            return False
        self._last = time.monotonic()
        self._logger.warning(message, *args)
        return True

    def reset(self) -> None:
        """Log the next warning without delay, because the previous problem is over."""
        self._last = -_INTERVAL

"""Logs the failures of one sink and computes the delay before each retry."""

from __future__ import annotations

import logging
import random

from metricbus._common.sink_urls import redact
from metricbus._common.throttled_log import ThrottledLogger
from metricbus.errors import BackendUnavailableError

_log = logging.getLogger("metricbus.delivery")

_MIN_DELAY_SECS, _MAX_DELAY_SECS = 0.5, 30.0
_MAX_RETRY_AFTER_SECS = 3600.0


class Backoff:
    """The failures of a sink since its last success.

    `error` describes the latest failure, without secrets. It is None if there was none.
    """

    def __init__(self, sink: str) -> None:
        self.error: str | None = None
        self._sink = sink
        self._failures = 0  # since the last success
        self._attempts = 0  # of these, since the last reset of the backoff
        self._random = random.Random()  # the global generator belongs to the training script
        self._throttled_log = ThrottledLogger(_log)

    def warn(self, message: str, error: Exception) -> None:
        """Record the failure, and log it unless another one was logged a short time ago."""
        self.error = _describe_error(error)
        self._throttled_log.warn("sink %s: %s: %s", self._sink, message, self.error)

    def give_up(self, error: BaseException, *, is_internal: bool) -> None:
        """Record and log what has stopped the consumer; an internal error with its traceback."""
        self.error = _describe_error(error)
        exc_info = error if is_internal else None
        _log.error("sink %s: delivery stopped: %s", self._sink, self.error, exc_info=exc_info)

    def next_delay(self, error: Exception) -> tuple[float, bool]:
        """Count a failure; return the delay before the next attempt in seconds, and who chose it.

        The delay doubles with each failure, from 0.5 s up to 30 s, and is shortened by up to a half
        at random. If the backend requests a delay, up to an hour, the second value is True.
        """
        self._failures += 1
        self._attempts += 1
        if isinstance(error, BackendUnavailableError) and error.retry_after is not None:
            return min(max(error.retry_after, 0.0), _MAX_RETRY_AFTER_SECS), True
        secs = min(_MIN_DELAY_SECS * 2.0 ** min(self._attempts - 1, 20), _MAX_DELAY_SECS)
        return secs * self._random.uniform(0.5, 1.0), False

    def reset_backoff(self) -> None:
        """Restart with the shortest delay, because the run has ended and time is limited."""
        self._attempts = 0

    def recover(self) -> None:
        """Record a success."""
        if self._failures:
            _log.warning("sink %s: delivery has recovered", self._sink)
            self._failures = self._attempts = 0
            self.clear_error()

    def clear_error(self) -> None:
        """Clear the error, and log the next failure without delay."""
        self.error = None
        self._throttled_log.reset()


def _describe_error(error: BaseException) -> str:
    try:
        return redact(f"{type(error).__name__}: {error}")
    except Exception:  # the exception's own __str__ has failed
        return type(error).__name__

"""One sink's failures: what is told of them, and how long its consumer rests after each."""

from __future__ import annotations

import logging
import random
from typing import NamedTuple

from metricbus._common.sink_urls import redact
from metricbus._common.throttled_log import ThrottledLogger
from metricbus.errors import Unavailable

_log = logging.getLogger("metricbus.delivery")

_FIRST_REST, _LAST_REST = 0.5, 30.0
_LONGEST_REST = 3600.0  # whatever the backend asks for


class Rest(NamedTuple):
    """How long to wait before the next attempt, and whether it is the backend that wants so."""

    secs: float
    is_asked_for: bool


class Backoff:
    """What a sink has failed at since it last worked; `error` is the newest one, in words."""

    def __init__(self, sink: str) -> None:
        self.error: str | None = None
        self._sink = sink
        self._in_a_row = 0
        self._attempts = 0  # of these, since the run has ended
        self._random = random.Random()  # our own: the global one belongs to the training
        self._complaints = ThrottledLogger(_log)

    def complain(self, what: str, error: Exception) -> None:
        """Remembers the failure, and warns of it unless that was done a short while ago."""
        self.error = _in_words(error)
        self._complaints.warn("sink %s: %s: %s", self._sink, what, self.error)

    def give_up(self, error: BaseException) -> None:
        """Remembers what the consumer has died of."""
        self.error = _in_words(error)
        _log.error("sink %s: its consumer stopped: %s", self._sink, self.error)

    def rest_after(self, error: Exception) -> Rest:
        """Counts a failure; the rest is short at first, and again when the run has just ended."""
        self._in_a_row += 1
        self._attempts += 1
        if isinstance(error, Unavailable) and error.retry_after is not None:
            return Rest(min(max(error.retry_after, 0.0), _LONGEST_REST), is_asked_for=True)
        secs = min(_FIRST_REST * 2.0 ** min(self._attempts - 1, 20), _LAST_REST)
        return Rest(secs * self._random.uniform(0.5, 1.0), is_asked_for=False)

    def reset_backoff(self) -> None:
        """The run has ended: there is no time to rest as long as before."""
        self._attempts = 0

    def recover(self) -> None:
        """The sink has taken something."""
        if self._in_a_row:
            _log.warning("sink %s works again", self._sink)
            self._in_a_row = self._attempts = 0
            self.forget()

    def forget(self) -> None:
        """What was complained of is over; the next failure is told at once."""
        self.error = None
        self._complaints.forget()


def _in_words(error: BaseException) -> str:
    """The error as text without secrets, even if it cannot tell its own."""
    try:
        return redact(f"{type(error).__name__}: {error}")
    except Exception:
        return type(error).__name__

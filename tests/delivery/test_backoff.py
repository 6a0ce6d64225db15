"""The delay between retries, and what is logged about the failures of a sink."""

from __future__ import annotations

import logging

import pytest

from metricbus import BackendUnavailableError
from metricbus._delivery.backoff import Backoff


def test_delay_doubles_up_to_30_seconds() -> None:
    backoff = Backoff("csv")
    delays = [backoff.next_delay(OSError("down")) for _ in range(12)]
    for number, (delay, is_requested) in enumerate(delays):
        longest = min(0.5 * 2**number, 30.0)
        assert longest / 2 <= delay <= longest
        assert not is_requested


def test_recovery_is_logged_once_and_restarts_with_the_shortest_delay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "metricbus.delivery")
    backoff = Backoff("csv")
    for _ in range(8):
        backoff.next_delay(OSError("down"))
    backoff.warn("delivery delayed", OSError("down"))
    backoff.recover()
    backoff.recover()
    assert caplog.messages == [
        "sink csv: delivery delayed: OSError: down",
        "sink csv: delivery has recovered",
    ]
    assert backoff.error is None
    assert backoff.next_delay(OSError("down"))[0] <= 0.5
    backoff.warn("delivery delayed", OSError("down again"))
    assert caplog.messages[-1] == "sink csv: delivery delayed: OSError: down again"


def test_delay_that_the_backend_requests_is_kept_up_to_an_hour() -> None:
    backoff = Backoff("csv")
    assert backoff.next_delay(BackendUnavailableError("later", retry_after=7.0)) == (7.0, True)
    assert backoff.next_delay(BackendUnavailableError("later", retry_after=1e9)) == (3600.0, True)
    assert backoff.next_delay(BackendUnavailableError("later", retry_after=-1.0)) == (0.0, True)

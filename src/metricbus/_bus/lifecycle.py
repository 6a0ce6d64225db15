"""Flushing and closing a bus: on request, at the end of the script, or at SIGTERM."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from metricbus._bus import shutdown
from metricbus._bus.process_copies import ProcessCopies
from metricbus._common.records import Status
from metricbus._delivery.report import DeliveryError, Report

_log = logging.getLogger("metricbus")


class Lifecycle(ProcessCopies):
    """The part of a bus that flushes and closes its run."""

    @abstractmethod
    def _log_remaining_metrics(self) -> None:
        """Log the torchmetrics objects whose epoch has not ended."""

    def stats(self) -> Report:
        """Return the current counts of logged, written and delivered values. Never waits."""
        if self._session is not None:
            return self._session.stats()
        return Report(dropped=self._dropped_before_joining())

    def flush(self, timeout: float | None = None) -> Report:
        """Wait until every value logged so far has reached every sink.

        Waits at most `timeout` seconds (default: the setting `close_timeout`), then returns the
        counts, whether or not they are complete.

        Raises `DeliveryError` under `strict=True` if a value was dropped, rejected or not yet
        delivered.
        """
        if self._session is None:
            report = self.stats()
        else:
            report = self._session.flush(self._clamp_timeout(timeout))
        self._check_complete(report, "flush()")
        return report

    def close(self, status: Status = "finished", timeout: float | None = None) -> Report:
        """End the run with a status (`finished`, `failed` or `killed`) and return the counts.

        Waits at most `timeout` seconds (default: the setting `close_timeout`) for the sinks. A
        sink that is not done by then continues in the background for as long as the process (or
        the delivery process) lives; `report.sinks[name].pending` is the number of its undelivered
        values.

        Closing again waits for the remaining values. The status of the first call is kept.

        Raises `ValueError` for an unknown status, and `DeliveryError` under `strict=True` if a
        value was dropped, rejected or not yet delivered.
        """
        if status not in ("finished", "failed", "killed"):
            raise ValueError(f'status must be "finished", "failed" or "killed", not {status!r}')
        if self._session is None:
            report = self.stats()
            self._check_complete(report, "close()")
            return report
        try:
            self._run_close_hooks()
            report = self._session.close(status, self._clamp_timeout(timeout))
        finally:
            # After Ctrl-C during this wait, the end of the script must not wait again.
            shutdown.unregister(self)
        self._check_complete(report, "close()")
        return report

    def before_close(self, end: Callable[[], object]) -> None:
        """Register a function to call when the run is closed, while the bus still accepts values.

        Use it to stop a background thread that logs. The function is also called at the end of the
        script, but not in a copy of the bus in another process. If it raises, a warning is logged
        and the run is closed nevertheless.
        """
        self._close_hooks.append(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(shutdown.status_for_exception(error))
        except DeliveryError:
            pass  # the exception from the block takes precedence

    def _clamp_timeout(self, timeout: float | None) -> float:
        secs = self._settings.close_timeout if timeout is None else float(timeout)
        return min(max(secs, 0.0), threading.TIMEOUT_MAX)

    def _check_complete(self, report: Report, call: str) -> None:
        if self._settings.strict and not report.complete:
            raise DeliveryError(f"{call}: not everything was delivered\n{report}", report)

    def _run_close_hooks(self) -> None:
        """Call the functions registered by `before_close`, then log the remaining metrics."""
        while self._close_hooks:
            hook = self._close_hooks.pop()
            try:
                hook()
            except Exception as error:  # user code; the run is closed regardless
                _log.warning("A before_close() function failed: %r", error)
        self._log_remaining_metrics()

    def _register_for_shutdown(self) -> None:
        shutdown.register(self)
        if self._settings.sigterm == "flush":
            shutdown.flush_at_sigterm()

    def _save_at_sigterm(self) -> None:
        """Write everything to the journal within two seconds. The process is about to end."""
        if self._session is not None:
            self._session.save()

    def _close_at_exit(self, status: Status) -> None:
        """Close a bus that is still open at the end of the script. Never raises."""
        if self._session is not None:
            self._run_close_hooks()
            self._session.close(status, self._settings.close_timeout)

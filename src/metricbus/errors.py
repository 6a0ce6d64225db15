"""The exceptions of metricbus.

Incorrect calls raise Python's `TypeError` or `ValueError` at once. The classes here are specific
to metricbus: an invalid configuration, files that cannot be read, and the exceptions by which a
sink tells its consumer how to handle a failure. `DeliveryError` is defined next to the report that
it carries, in `metricbus._delivery.report`.
"""

from __future__ import annotations


class MetricBusError(Exception):
    """Base class of the exceptions of metricbus."""


class ConfigError(MetricBusError, ValueError):
    """A setting, a sink URL, a definition or a run folder is invalid."""


class MissingPackageError(ConfigError):
    """A required package is not installed; the message contains the command to install it."""


class RunExistsError(ConfigError):
    """A run with this id already exists; pass `resume=True` to continue it."""


class ClosedError(MetricBusError, RuntimeError):
    """The bus was used after `close()`; only raised with `strict=True`."""


class JournalError(MetricBusError):
    """A run folder or journal cannot be read: it is missing, invalid, or of a newer format."""


class MediaError(MetricBusError):
    """A logged file is missing, has changed, or has the wrong format."""


class DeviceError(MetricBusError, RuntimeError):
    """A logged value could not be copied from its device to the host."""


class RankError(MetricBusError, RuntimeError):
    """Ranks could not be synchronized: one did not arrive in time, or has died."""


class BackendUnavailableError(MetricBusError):
    """Raised by a sink when its backend is temporarily unavailable; the batch is retried.

    `OSError`, including `ConnectionError` and `TimeoutError`, has the same effect. `retry_after` is
    the delay that the backend asked for, in seconds, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RecordsLostError(BackendUnavailableError):
    """Raised by a sink when its backend has lost records that were not acknowledged.

    `retry_after` is as in `BackendUnavailableError`. The consumer reopens the sink, and resumes
    after the last acknowledged record.
    """


class RecordsRejectedError(MetricBusError):
    """Raised by a sink when its backend permanently refuses what was written.

    The consumer retries the batch in halves until it has isolated the records that fail, counts
    these as rejected, and continues. Any other exception from `write`, except
    `BackendUnavailableError`, `RecordsLostError` and `OSError`, has the same effect.
    """

"""What can go wrong, in one hierarchy.

Misuse that shows at the call raises Python's own `TypeError` or `ValueError` in the caller's line.
The classes here say what is particular to metricbus: a configuration that cannot work, files that
cannot be read, and the words by which a sink tells its consumer what to do with a failure.
(`DeliveryError` stands beside the report that it carries.)
"""

from __future__ import annotations


class MetricBusError(Exception):
    """The base of every error that is metricbus's own."""


class ConfigError(MetricBusError, ValueError):
    """A setting, a sink URL or a run's folder that cannot work; raised when the bus is made."""


class MissingPackageError(ConfigError):
    """A package that is needed is not installed; the message says how to install it."""


class RunExistsError(ConfigError):
    """A run with this id is already there; a new bus never writes into somebody else's run."""


class ClosedError(MetricBusError, RuntimeError):
    """The bus was used after `close()`, and `strict=True` asked to be told by an exception."""


class JournalError(MetricBusError):
    """A run's folder or journal cannot be read: missing, foreign, or of a newer format."""


class MediaError(MetricBusError):
    """A file that was logged is missing, was changed, or is not what it should be."""


class DeviceError(MetricBusError, RuntimeError):
    """A value that was logged could not be brought over from its device."""


class RankError(MetricBusError, RuntimeError):
    """Ranks that were to meet did not: one has not come in time, or has died."""


class Unavailable(MetricBusError):  # noqa: N818 - a sink reads `raise Unavailable(...)`
    """A sink raises this when its backend cannot be had right now; the batch comes again.

    `OSError` (and so `ConnectionError` and `TimeoutError`) means the same.
    `retry_after` is the number of seconds the backend asked for, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Lost(Unavailable):
    """A sink raises this when what it has taken since it last `acknowledged` is gone with its backend.

    The consumer opens the sink again, and goes on from what was settled.
    """


class Rejected(MetricBusError):  # noqa: N818 - a sink reads `raise Rejected(...)`
    """A sink raises this when its backend will never take what was written.

    The consumer writes the batch again record by record, counts the ones that fail alone as
    rejected, and goes on. Any other exception is treated the same way.
    """

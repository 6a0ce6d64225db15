"""Torchmetrics objects that were logged, and their values.

`bus.log("acc", metric)` does not compute the metric: it accumulates until the epoch ends, and its
`compute()` synchronizes with the other ranks, which `log()` must never do. The metric is kept here,
with its name, step and epoch, until the bus computes it.

torchmetrics is looked up in `sys.modules`: a program that has not imported it has no such metrics.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeAlias

from metricbus._common.device_values import named_values
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._common.validation import check_name, to_number
from metricbus._compat.torchmetrics import is_updated, local_compute

Metric: TypeAlias = Any
"""A `torchmetrics.Metric` or a `torchmetrics.MetricCollection`."""

_log = logging.getLogger("metricbus.metrics")

# Limits memory if the program never ends an epoch.
_MAX_PENDING = 1000


class ComputedMetric(NamedTuple):
    """The values of one metric by name, as `log()` accepts them, and where it was last logged."""

    values: dict[str, Any]
    step: int
    epoch: int


class _PendingMetric(NamedTuple):
    metric: Metric
    step: int
    epoch: int


class TorchmetricsValues:
    """The metrics that have been logged but not computed yet."""

    def __init__(self) -> None:
        self.has_logged = False  # whether a metric was ever added
        self._pending: dict[tuple[str, int], _PendingMetric] = {}
        self._throttled_log = ThrottledLogger(_log)

    def add(self, name: str, metric: Metric, step: int, epoch: int) -> None:
        """Keep `metric` to be computed later, at the step and epoch of its last `add`.

        Different objects under one name are computed separately, in the order of their first `add`.
        Callable from any thread.
        """
        self.has_logged = True
        self._pending[name, id(metric)] = _PendingMetric(metric, step, epoch)
        if len(self._pending) > _MAX_PENDING:
            oldest = next(iter(self._pending))
            self._pending.pop(oldest, None)
            self._warn(
                oldest[0],
                f"dropped, because more than {_MAX_PENDING:,} metric objects are waiting to be "
                "computed; end epochs with bus.epochs() or bus.end_epoch()",
            )

    def names(self) -> list[str]:
        """Return the names of the pending metrics, sorted."""
        return sorted({name for name, _ in list(self._pending)})

    def counts(self) -> dict[str, int]:
        """Return the number of pending metrics by name."""
        return dict(Counter(name for name, _ in list(self._pending)))

    def updated_names(self) -> list[str]:
        """Return the names of the pending metrics that have received data on this rank, sorted."""
        pending = list(self._pending.items())
        return sorted({name for (name, _), item in pending if is_updated(item.metric)})

    def compute(
        self, sync: bool, synced_names: Collection[str] | None = None
    ) -> list[ComputedMetric]:
        """Compute and reset all pending metrics, sorted by name.

        With `sync`, the metrics in `synced_names` synchronize with the other ranks, each in its own
        way. All ranks must pass the same names: those that are pending on every rank and have
        received data on at least one. The default is the names updated on this rank. Other metrics
        are computed from the data of this rank.

        Skips metrics without data; also, with a warning, metrics that raise or whose result is not
        a number, a vector or a mapping of them.
        """
        if synced_names is None:
            synced_names = self.updated_names() if sync else ()
        computed: list[ComputedMetric] = []
        to_reset: list[tuple[str, Metric]] = []
        for key in sorted(list(self._pending), key=lambda key: key[0]):  # noqa: C414  # atomic
            pending = self._pending.pop(key, None)
            if pending is None:
                continue
            name, metric = key[0], pending.metric
            to_reset.append((name, metric))
            is_synced = sync and name in synced_names
            if is_synced or is_updated(metric):
                if sync and not is_synced:
                    self._warn(
                        name, "not every rank has logged it; its value covers this rank only"
                    )
                computed += self._compute(name, pending, is_synced=is_synced)
        # Reset last, because one object may be pending under several names.
        for name, metric in to_reset:
            try:
                metric.reset()
            except Exception as error:
                self._warn(name, f"reset() failed: {type(error).__name__}: {error}")
        return computed

    def _compute(
        self, name: str, pending: _PendingMetric, *, is_synced: bool
    ) -> list[ComputedMetric]:
        try:
            with _sync_control(pending.metric, is_synced=is_synced):
                values = _name_values(name, pending.metric.compute())
        except Exception as error:  # metrics run third-party code
            self._warn(name, f"its value cannot be logged: {type(error).__name__}: {error}")
            return []
        return [ComputedMetric(values, pending.step, pending.epoch)] if values else []

    def _warn(self, name: str, message: str) -> None:
        self._throttled_log.warn("metric %r: %s", name, message, key=name)


@contextmanager
def _sync_control(metric: Metric, *, is_synced: bool) -> Iterator[None]:
    """Turn the synchronization in `compute()` off, unless `is_synced`."""
    with nullcontext() if is_synced else local_compute(metric), warnings.catch_warnings():
        # A rank without data still has to take part in the synchronization.
        warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)
        yield


def _name_values(name: str, result: Any) -> dict[str, Any]:
    """Return the values of a result by name. Raise `TypeError` for more than one dimension."""
    if isinstance(result, Mapping):
        values: dict[str, Any] = {}
        for key, inner in result.items():
            values |= _name_values(f"{name}/{key}", inner)
        return values
    check_name(name)
    if not isinstance(result, sys.modules["torch"].Tensor):
        return {name: to_number(name, result)}
    if result.ndim > 1 or result.is_complex():
        raise TypeError(
            f"the result is a tensor of shape {tuple(result.shape)} and {result.dtype}, not a real "
            "number, a vector or a mapping of them; call compute() yourself and log the result as "
            "Chart(matrix, kind='confusion'), a Table or an Image"
        )
    if result.numel() == 1:
        return {name: result}
    return named_values([f"{name}/{index}" for index in range(len(result))], result)

"""torchmetrics: whether a metric has data, and its synchronization with other ranks.

Nothing here imports torchmetrics: a program that has not imported it has no such metrics.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from metricbus._compat.degrade import degrading


def nested_metrics(metric: Any) -> list[Any]:
    """Return the metric itself, and the metrics in it if it is a collection or a wrapper."""
    metric_class = sys.modules["torchmetrics"].Metric
    return [module for module in metric.modules() if isinstance(module, metric_class)]


def is_updated(metric: Any) -> bool:
    """Check whether a metric has received data."""
    wrappers = sys.modules["torchmetrics.wrappers"]
    wrapper: Any = ()
    loss = "metrics inside a wrapper are computed even if they have no data"
    with degrading("torchmetrics", "torchmetrics.wrappers.abstract.WrapperMetric", loss):
        wrapper = wrappers.abstract.WrapperMetric
    for nested in nested_metrics(metric):
        # Running resets the wrapped metric after each update, and has no public counter.
        if isinstance(nested, wrappers.Running):
            if _has_running_values(nested):
                return True
        # Other wrappers leave the tracking to the wrapped metrics.
        elif not isinstance(nested, wrapper) and nested.update_called:
            return True
    return False


def _has_running_values(metric: Any) -> bool:
    with degrading(
        "torchmetrics", "Running._num_vals_seen", "Running metrics without data are computed"
    ):
        return bool(metric._num_vals_seen)
    return True


@contextmanager
def local_compute(metric: Any) -> Iterator[None]:
    """Keep `compute()` in the block from synchronizing with other ranks.

    Raises `RuntimeError` if that is not possible and there are other ranks.

    `compute()` calls `distributed_available_fn` each time. Setting `sync_on_compute` would have no
    effect, because it is only read when the metric is created or called.
    """
    originals: list[tuple[Any, Any]] = []
    is_local = not _has_ranks()
    try:
        loss = "metrics that not every rank has logged are not computed"
        with degrading("torchmetrics", "Metric.distributed_available_fn", loss):
            for nested in nested_metrics(metric):
                originals.append((nested, nested.distributed_available_fn))
                nested.distributed_available_fn = lambda: False
            is_local = True
        if not is_local:
            raise RuntimeError("compute() would wait for ranks that have not logged the metric")
        yield
    finally:
        for nested, original in originals:
            with suppress(AttributeError):
                nested.distributed_available_fn = original


def _has_ranks() -> bool:
    distributed = sys.modules["torch"].distributed
    return bool(distributed.is_available() and distributed.is_initialized())

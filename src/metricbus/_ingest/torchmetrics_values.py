"""Metrics of torchmetrics that were logged as they are, and what becomes of them.

`bus.log("acc", metric)` computes nothing: a metric goes on accumulating until the epoch ends, and
its own `compute()` meets the other ranks, which `log()` must never do. So it is remembered here,
under its name with its step and epoch, until the bus asks for its value.

torchmetrics is found in `sys.modules`: who never imported it has no such metrics.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from metricbus._common.device_values import spread
from metricbus._common.throttled_log import ThrottledLogger
from metricbus._common.validation import check_name, to_number

Metric: TypeAlias = Any
"""A `torchmetrics.Metric` or a `torchmetrics.MetricCollection`."""

_log = logging.getLogger("metricbus.metrics")

_MOST = 1000  # metrics that are remembered, should nobody ever end an epoch


class Computed(NamedTuple):
    """What one metric gave, by name, ready for `log()`; and where it was logged last."""

    values: dict[str, Any]
    step: int
    epoch: int


class _Remembered(NamedTuple):
    metric: Metric
    step: int
    epoch: int


class TorchmetricsValues:
    """The metrics that were logged and are still to be computed.

    `remember` is called by whoever logs, on any thread, and neither waits nor computes.
    """

    def __init__(self) -> None:
        self._remembered: dict[tuple[str, int], _Remembered] = {}
        self.were_logged = False  # whether any ever was
        self._complaints: dict[str, ThrottledLogger] = {}

    def remember(self, name: str, metric: Metric, step: int, epoch: int) -> None:
        """Has `metric` computed later, as it is then; logged again, it stands where it was last.

        Several objects under one name are computed one by one, in the order in which they came.
        """
        self.were_logged = True
        self._remembered[name, id(metric)] = _Remembered(metric, step, epoch)
        if len(self._remembered) > _MOST:
            oldest = next(iter(self._remembered))
            self._remembered.pop(oldest, None)
            self._warn(
                oldest[0],
                f"more than {_MOST:,} metric objects wait to be computed and the oldest is left "
                "out; end epochs with bus.epochs() or bus.end_epoch()",
            )

    def names(self) -> list[str]:
        """The names under which metrics are remembered, sorted."""
        return sorted({name for name, _ in list(self._remembered)})

    def counts(self) -> dict[str, int]:
        """How many objects are remembered under each name."""
        return dict(Counter(name for name, _ in list(self._remembered)))

    def updated(self) -> list[str]:
        """Those of `names()` whose metric has seen data here."""
        waiting = list(self._remembered.items())
        return sorted({name for (name, _), found in waiting if _was_updated(found.metric)})

    def compute(self, sync: bool, together: Collection[str] | None = None) -> list[Computed]:
        """Computes and resets what is remembered, by sorted names, and forgets it.

        Without `sync` no metric meets other ranks. With it each one does by its own means, so every
        rank calls this with the same names in `together`: those that every rank remembers and at
        least one has updated (if left out, what is updated here). The others are computed alone.

        A metric that was never updated is left out. So is one that fails, or whose result no name
        can be given: a warning says why.
        """
        if together is None:
            together = self.updated() if sync else ()
        found: list[Computed] = []
        done: list[tuple[str, Metric]] = []
        for key in sorted(list(self._remembered), key=lambda key: key[0]):  # noqa: C414  # atomic
            one = self._remembered.pop(key, None)
            if one is None:
                continue
            name = key[0]
            done.append((name, one.metric))
            meets = sync and name in together
            if meets or self._is_worth_it(name, one.metric, alone=sync):
                found += self._compute(name, one, meets=meets)
        for name, metric in done:  # not before: one object may stand under several names
            self._reset(name, metric)
        return found

    def _is_worth_it(self, name: str, metric: Metric, *, alone: bool) -> bool:
        """Whether there is something to compute; says so if it is by this rank `alone`."""
        updated = _was_updated(metric)
        if updated and alone:
            self._warn(name, "not every rank has logged it, and its value is of this rank alone")
        return updated

    def _compute(self, name: str, one: _Remembered, *, meets: bool) -> list[Computed]:
        try:
            with _computing(one.metric, meets=meets):
                values = _named(name, one.metric.compute())
        except Exception as error:  # whatever a metric of the user's own may raise
            self._warn(name, f"it cannot be computed: {type(error).__name__}: {error}")
            return []
        return [Computed(values, one.step, one.epoch)] if values else []

    def _reset(self, name: str, metric: Metric) -> None:
        try:
            metric.reset()
        except Exception as error:
            self._warn(name, f"it cannot be reset: {type(error).__name__}: {error}")

    def _warn(self, name: str, what: str) -> None:
        self._complaints.setdefault(name, ThrottledLogger(_log)).warn("metric %r: %s", name, what)


def _parts(metric: Metric) -> list[Metric]:
    """The metric itself and the metrics in it, if it is a collection or a wrapper."""
    kind = sys.modules["torchmetrics"].Metric
    return [module for module in metric.modules() if isinstance(module, kind)]


def _was_updated(metric: Metric) -> bool:
    """Whether it has seen data."""
    return any(_has_seen_data(part) for part in _parts(metric))


def _has_seen_data(part: Metric) -> bool:
    """What one metric knows of itself; a wrapper knows nothing, and what it wraps is asked.

    But a running one resets what it wraps each time, and has no public word for how much it has.
    """
    wrappers = sys.modules["torchmetrics.wrappers"]
    if isinstance(part, wrappers.Running):
        return bool(getattr(part, "_num_vals_seen", True))
    return not isinstance(part, wrappers.abstract.WrapperMetric) and bool(part.update_called)


@contextmanager
def _computing(metric: Metric, *, meets: bool) -> Iterator[None]:
    """Has `compute()` meet other ranks or not, and leaves the metric as it was.

    That goes by `distributed_available_fn`, which is asked each time; `sync_on_compute` is read
    when a metric is made, or called, and to set it just before `compute()` has no effect.
    """
    parts = [] if meets else _parts(metric)
    before = [part.distributed_available_fn for part in parts]
    try:
        for part in parts:
            part.distributed_available_fn = _nobody_else
        with warnings.catch_warnings():
            # A rank without data still has to meet the others.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)
            yield
    finally:
        for part, available in zip(parts, before, strict=True):
            part.distributed_available_fn = available


def _nobody_else() -> bool:
    return False


def _named(name: str, result: Any) -> dict[str, Any]:
    """The numbers of a result with their names; `TypeError` for one that is more than a vector."""
    if isinstance(result, Mapping):
        values: dict[str, Any] = {}
        for key, inner in result.items():
            values |= _named(f"{name}/{key}", inner)
        return values
    check_name(name)
    if not isinstance(result, sys.modules["torch"].Tensor):
        return {name: to_number(name, result)}
    if result.ndim > 1 or result.is_complex():
        raise TypeError(
            f"its result is a tensor of shape {tuple(result.shape)} and {result.dtype}, where a "
            "real number, a vector or a mapping of them is expected; compute() it yourself and log "
            "it as Chart(matrix, kind='confusion'), a Table or an Image"
        )
    if result.numel() == 1:
        return {name: result}
    return spread([f"{name}/{place}" for place in range(len(result))], result)

"""Ends of epochs, and reductions across ranks.

`log()` never synchronizes ranks. `bus.end_epoch()` and `bus.sync()` do if a definition merges
across ranks or a torchmetrics object was logged. Every rank must then call them equally often.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import time_ns
from typing import TYPE_CHECKING, Any

from metricbus._aggregate.cross_rank import MergedValue, merge_partials
from metricbus._aggregate.rules import Definitions
from metricbus._common.device_values import DeviceValue
from metricbus._common.distributed import current_rank, gather
from metricbus._common.records import EPOCH_TIME, Number
from metricbus._common.settings import Settings
from metricbus._common.throttled_log import OnceLogger
from metricbus._common.validation import to_number
from metricbus._ingest.recorder import Recorder
from metricbus._ingest.torchmetrics_values import ComputedMetric
from metricbus.errors import DeviceError

if TYPE_CHECKING:
    from metricbus._bus.session import Session

_log = logging.getLogger("metricbus.ranks")

_MIN_COLLECTOR_SECS = 5.0


class EpochSync:
    """Ends the epochs of one bus, and merges its values with those of the other ranks."""

    def __init__(self, recorder: Recorder, definitions: Definitions, settings: Settings) -> None:
        self._recorder = recorder
        self._definitions = definitions
        self._settings = settings
        self._once = OnceLogger(_log)
        # How long to wait for the collector, even if `block_secs` is shorter.
        self._collector_secs = max(settings.block_secs, _MIN_COLLECTOR_SECS)

    def end_epoch(self, session: Session | None, seconds: float | None) -> dict[str, Number]:
        """End the epoch of a loop, with its duration, or of `bus.end_epoch()`, without one."""
        if session is None:
            return {}
        clock = self._recorder.clock
        results: dict[str, Number] = {}
        if seconds is not None:
            self._recorder.log(EPOCH_TIME, seconds, step=clock.step)
        if self._definitions or seconds is not None:
            results = session.end_epoch(clock.step, clock.epoch, seconds, self._collector_secs)
        return results | self.merge(session, "bus.end_epoch()", ends_epoch=True)

    def merge(
        self,
        session: Session | None,
        call: str,
        group: Any = None,
        timeout: float | None = None,
        *,
        ends_epoch: bool = False,
    ) -> dict[str, Number]:
        """Merge the partial aggregates and torchmetrics objects of all ranks, if there are any."""
        metrics = self._recorder.metrics
        if session is None or not (self._definitions.merges_across_ranks or metrics.has_logged):
            return {}
        partials = dict(session.collect_partials(self._collector_secs))
        own = {
            "writes": session.folder is not None,
            "parts": partials,
            "metrics": metrics.counts(),
            "updated": metrics.updated_names(),
        }
        secs = self._settings.sync_secs if timeout is None else timeout
        try:
            by_rank = gather(own, call, group=group, timeout=secs)
            merged = merge_partials({rank: state["parts"] for rank, state in by_rank.items()})
        except BaseException:
            session.restore_partials(partials)
            raise
        if group is None:
            computed = metrics.compute(len(by_rank) > 1, _common_metrics(by_rank))
            resolved = map(_resolve, _to_merged_values(computed))
            merged += [value for value in resolved if value is not None]
        if len(by_rank) > 1 and session.initial_rank.size == 1:
            self._once.warn(
                "This bus was created before torch.distributed was initialized, and no launcher "
                "set the rank, so each rank has created a separate run. Create the bus after "
                "init_process_group()."
            )
        writer = next((rank for rank, state in by_rank.items() if state["writes"]), None)
        is_writer = writer == current_rank().number
        epoch = self._recorder.clock.epoch
        session.publish_merged(merged, epoch, ends_epoch=ends_epoch, is_writer=is_writer)
        return {value.emitted_as: value.value for value in merged}

    def log_remaining_metrics(self, session: Session | None) -> None:
        """Compute and log the remaining torchmetrics objects without synchronizing the ranks."""
        metrics = self._recorder.metrics
        if session is not None and metrics.names():
            values = _to_merged_values(metrics.compute(sync=False))
            epoch = self._recorder.clock.epoch
            session.publish_merged(values, epoch, ends_epoch=True, is_writer=True)


def _common_metrics(by_rank: Mapping[int, Mapping[str, Any]]) -> set[str]:
    """Return the torchmetrics names to synchronize.

    Every rank has logged the same number of objects under such a name, and at least one rank has
    updated one of them.
    """
    counts = [state["metrics"] for state in by_rank.values()]
    common = {name for name in counts[0] if len({count.get(name) for count in counts}) == 1}
    return common & {name for state in by_rank.values() for name in state["updated"]}


def _to_merged_values(computed: list[ComputedMetric]) -> list[MergedValue]:
    """Convert computed metrics. Their values may still be pending on a device."""
    now = time_ns()
    return [
        MergedValue(
            name, name, value if type(value) is DeviceValue else to_number(name, value), step, now
        )
        for values, step, _ in computed
        for name, value in values.items()
    ]


def _resolve(merged: MergedValue) -> MergedValue | None:
    """Copy a pending value to the host. Return None if that fails."""
    if type(merged.value) is not DeviceValue:
        return merged
    try:
        return merged._replace(value=merged.value.number())
    except DeviceError as error:
        _log.warning("Lost the value of %r at step %d: %s", merged.name, merged.step, error)
        return None

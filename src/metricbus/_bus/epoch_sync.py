"""Ends of epochs, and reductions across ranks.

`log()` never synchronizes ranks. `end_epoch()` and `sync()` do if a definition merges across ranks
or a torchmetrics object was logged. Every rank must then call them the same number of times.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import time_ns
from typing import Any

from metricbus._aggregate.cross_rank import MergedValue, merge_partials
from metricbus._bus.lifecycle import Lifecycle
from metricbus._common.device_values import DeviceValue
from metricbus._common.distributed import current_rank, gather
from metricbus._common.records import EPOCH_TIME, Number
from metricbus._common.validation import to_number
from metricbus._ingest.torchmetrics_values import ComputedMetric
from metricbus.errors import DeviceError

_log = logging.getLogger("metricbus.ranks")

_MIN_COLLECTOR_SECS = 5.0


class EpochSync(Lifecycle):
    """The part of a bus that ends epochs and merges values across ranks."""

    _has_warned_of_early_start = False

    def end_epoch(self) -> dict[str, Number]:
        """End the epoch and return the values reduced over it, by name.

        Outside an `epochs()` loop, the next epoch starts at once. If a definition merges across
        ranks, or a torchmetrics object was logged, every rank must call this; see `sync()`, which
        also lists the errors.
        """
        results = self._end_epoch(None)
        if self._clock.epoch_driver is None:
            self._clock.leave_epoch()
        return results

    def sync(self, *, group: Any = None, timeout: float | None = None) -> dict[str, Number]:
        """Merge the values of all ranks logged since the last merge, and return them by name.

        Merges the names defined with `across_ranks=`. Without a `group`, also computes the logged
        torchmetrics objects over all ranks. Every rank of the torch.distributed `group` (default:
        all ranks) must call this, even if it logged nothing. All of them receive the results. The
        first rank that writes logs them, at the step of the last value.

        Raises `RankError`, naming the missing ranks, if a rank does not call this within `timeout`
        seconds (default: the setting `sync_secs`). The values are then kept for the next merge.
        """
        return self._merge_across_ranks("bus.sync()", group, timeout, ends_epoch=False)

    def _begin_epoch(self) -> None:
        if (session := self._joined_session()) is not None:
            session.begin_epoch(self._clock.step, self._clock.epoch)

    def _end_epoch(self, seconds: float | None) -> dict[str, Number]:
        if self._session is None:
            return {}
        results: dict[str, Number] = {}
        if seconds is not None:
            self.log(EPOCH_TIME, seconds, step=self._clock.step)
        if self._definitions or seconds is not None:
            results = self._session.end_epoch(
                self._clock.step, self._clock.epoch, seconds, self._collector_timeout()
            )
        return results | self._merge_across_ranks("bus.end_epoch()", None, None, ends_epoch=True)

    def _merge_across_ranks(
        self, call: str, group: Any, timeout: float | None, *, ends_epoch: bool
    ) -> dict[str, Number]:
        """Merge the partial aggregates and torchmetrics objects of all ranks, if there are any."""
        session, metrics = self._joined_session(), self._metrics
        if session is None or not (self._definitions.merges_across_ranks or metrics.has_logged):
            return {}
        partials = dict(session.collect_partials(self._collector_timeout()))
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
            self._warn_of_early_start()
        writer = next((rank for rank, state in by_rank.items() if state["writes"]), None)
        is_writer = writer == current_rank().number
        session.publish_merged(
            merged, self._clock.epoch, ends_epoch=ends_epoch, is_writer=is_writer
        )
        return {value.emitted_as: value.value for value in merged}

    def _collector_timeout(self) -> float:
        """Return how many seconds to wait for the collector, even if `block_secs` is shorter."""
        return max(self._settings.block_secs, _MIN_COLLECTOR_SECS)

    def _warn_of_early_start(self) -> None:
        if not self._has_warned_of_early_start:
            self._has_warned_of_early_start = True
            _log.warning(
                "This bus was created before torch.distributed was initialized, and no launcher "
                "set the rank, so each rank has created a separate run. Create the bus after "
                "init_process_group()."
            )

    def _log_remaining_metrics(self) -> None:
        """Compute and log the remaining torchmetrics objects without synchronizing the ranks."""
        if self._session is not None and self._metrics.names():
            values = _to_merged_values(self._metrics.compute(sync=False))
            self._session.publish_merged(values, self._clock.epoch, ends_epoch=True, is_writer=True)


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

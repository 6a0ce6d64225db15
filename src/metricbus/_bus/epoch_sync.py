"""A bus where something ends or ranks meet: epochs, and what is reduced across ranks.

`log()` never meets anybody. `end_epoch()` and `sync()` do, if something that waits for it has been
defined or logged; then every rank has to call them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import time_ns
from typing import Any

from metricbus._aggregate.cross_rank import Merged, merge
from metricbus._bus.process_copies import ProcessCopies
from metricbus._common.device_values import Pending
from metricbus._common.distributed import find_rank, gather
from metricbus._common.records import EPOCH_TIME, Number
from metricbus._common.validation import to_number
from metricbus._ingest.torchmetrics_values import Computed
from metricbus.errors import DeviceError

_log = logging.getLogger("metricbus.ranks")

_LEAST_PATIENCE = 5.0  # seconds


class EpochSync(ProcessCopies):
    """A bus as far as the ends of epochs, and other ranks, are concerned."""

    _told_late = False

    def end_epoch(self) -> dict[str, Number]:
        """Ends the epoch and returns what was reduced over it, by name.

        The next epoch begins, at once if no `epochs()` loop is there to begin it. Where something
        is reduced across ranks, or a metric object was logged, every rank calls this; see `sync`.
        """
        results = self._end_epoch(None)
        if self._clock.epoch_driver is None:
            self._clock.leave_epoch()
        return results

    def sync(self, *, group: Any = None, timeout: float | None = None) -> dict[str, Number]:
        """Reduces, over all ranks, what was logged since they last met; returns it by name.

        Every rank of the torch.distributed `group` (all ranks, if left out) calls it, whatever each
        has logged. What is reduced is what `define(across_ranks=)` names; metric objects are
        computed over all ranks if no group is given. The first rank that writes logs the results
        at the step of the last value; all ranks get them.

        Raises `RankError` that names a rank that has not come within `timeout` seconds
        (`METRICBUS_SYNC_SECS`); what was logged then waits for the next time.
        """
        return self._meet("bus.sync()", group, timeout, ended=False)

    def _begin_epoch(self) -> None:
        if (session := self._awake()) is not None:
            session.begin_epoch(self._clock.step, self._clock.epoch)

    def _end_epoch(self, seconds: float | None) -> dict[str, Number]:
        if self._session is None:
            return {}
        results: dict[str, Number] = {}
        if seconds is not None:
            self.log(EPOCH_TIME, seconds, step=self._clock.step)
        if self._definitions or seconds is not None:
            results = self._session.end_epoch(
                self._clock.step, self._clock.epoch, seconds, self._patience()
            )
        return results | self._meet("bus.end_epoch()", None, None, ended=True)

    def _meet(
        self, what: str, group: Any, timeout: float | None, *, ended: bool
    ) -> dict[str, Number]:
        """Has the ranks put together what each has, if there is anything that waits for it."""
        session = self._awake()
        if session is None or not (self._definitions.any_across_ranks or self._metrics.were_logged):
            return {}
        metrics = self._metrics
        open_here = dict(session.collect_partials(self._patience()))
        own = {
            "writes": session.folder is not None,
            "parts": open_here,
            "metrics": metrics.counts(),
            "updated": metrics.updated(),
        }
        secs = self._settings.sync_secs if timeout is None else timeout
        try:
            by_rank = gather(own, what, group=group, timeout=secs)
            merged = merge({rank: part["parts"] for rank, part in by_rank.items()})
        except BaseException:
            session.restore_partials(open_here)
            raise
        if group is None:
            together = _together(by_rank)
            computed = _as_merged(metrics.compute(len(by_rank) > 1, together))
            merged += [one for one in map(_resolved, computed) if one is not None]
        if len(by_rank) > 1 and session.known_as.size == 1:
            self._tell_late()
        writer = next((rank for rank, part in by_rank.items() if part["writes"]), None)
        here = writer == find_rank().number
        session.publish_merged(merged, self._clock.epoch, ended=ended, here=here)
        return {one.emitted_as: one.value for one in merged}

    def _patience(self) -> float:
        """How long the collector may take, also where a full queue is not waited for."""
        return max(self._settings.block_secs, _LEAST_PATIENCE)

    def _tell_late(self) -> None:
        """Once: this bus was made when nobody could know that there are other ranks."""
        if not self._told_late:
            self._told_late = True
            _log.warning(
                "this bus was made before torch.distributed was initialised, and without a "
                "launcher that says which rank it is: each rank has made a run of its own. Make it "
                "after init_process_group()"
            )

    def _compute_left(self) -> None:
        """At the end, nobody is met: metric objects that are left are computed alone."""
        if self._session is not None and self._metrics.names():
            left = _as_merged(self._metrics.compute(sync=False))
            self._session.publish_merged(left, self._clock.epoch, ended=True, here=True)


def _together(by_rank: Mapping[int, Mapping[str, Any]]) -> set[str]:
    """The names of metric objects that all ranks have alike, and at least one has data for."""
    everyones = [part["metrics"] for part in by_rank.values()]
    alike = {name for name in everyones[0] if len({one.get(name) for one in everyones}) == 1}
    return alike & {name for part in by_rank.values() for name in part["updated"]}


def _as_merged(computed: list[Computed]) -> list[Merged]:
    """Values may still be on their way from a device."""
    now = time_ns()
    return [
        Merged(name, name, value if type(value) is Pending else to_number(name, value), step, now)
        for values, step, _ in computed
        for name, value in values.items()
    ]


def _resolved(one: Merged) -> Merged | None:
    """With the number itself; None if the device does not give it."""
    if type(one.value) is not Pending:
        return one
    try:
        return one._replace(value=one.value.number())
    except DeviceError as error:
        _log.warning("%r at step %d is lost: %s", one.name, one.step, error)
        return None

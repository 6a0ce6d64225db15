"""What hosts a bus's sinks: threads in this process, or a process of their own.

Sinks that are named by a URL work in the delivery process as soon as one of them is heavy. Those
that must live in the application (standard logging, objects of the user's) work in a thread each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from metricbus._common.records import Status
from metricbus._common.settings import Hosting
from metricbus._delivery.process_host import ProcessDelivery
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._delivery.thread_host import ThreadDelivery
from metricbus._journal.run import RunFolder

_log = logging.getLogger("metricbus.delivery")

Host: TypeAlias = ThreadDelivery | ProcessDelivery


class Delivery:
    """Brings one run's journal to its sinks."""

    def __init__(
        self,
        folder: RunFolder,
        specs: Sequence[SinkSpec],
        attempt: int,
        hosting: Hosting,
        linger_secs: float,
    ) -> None:
        self._specs = specs
        self._folder = folder
        apart = _apart(specs, hosting)
        here = [spec for spec in specs if spec not in apart and hosting != "off"]
        self._hosts: list[Host] = (
            [ThreadDelivery(folder, here, beside_training=True)] if here else []
        )
        if apart:
            self._hosts.append(ProcessDelivery(folder, apart, attempt, linger_secs))
        self._apart = apart

    def start(self) -> None:
        """Starts the threads and the process; or more threads, where no process can be started."""
        for at, host in enumerate(self._hosts):
            try:
                host.start()
            except Exception as error:  # whatever it is, the training goes on
                _log.warning("no delivery process (%s): threads deliver instead", error)
                self._hosts[at] = ThreadDelivery(self._folder, self._apart, beside_training=True)
                self._hosts[at].start()

    def wake(self) -> None:
        """The journal has grown."""
        for host in self._hosts:
            host.wake()

    def flush(self, target: Mapping[str, int], deadline: float) -> bool:
        """Waits until every sink has dealt with these bytes of the segments; whether all have."""
        reached = [host.flush(target, deadline) for host in self._hosts]
        return all(reached)

    def end(self, status: Status) -> None:
        """Has every sink take the rest and close; each does so at its own pace."""
        for host in self._hosts:
            host.end(status)

    def wait_until_closed(self, deadline: float) -> bool:
        """Whether all sinks have closed, at the latest when the (monotonic) clock says so."""
        closed = [host.wait_until_closed(deadline) for host in self._hosts]
        return all(closed)

    def names(self) -> list[str]:
        """The names of the sinks as definitions name them."""
        return [spec.kind for spec in self._specs]

    def unfinished(self) -> list[str]:
        """The sinks that have not closed yet."""
        return [name for host in self._hosts for name in host.unfinished()]

    def tallies(self) -> dict[str, Tally]:
        """What each sink has dealt with, by its name, in the order in which they were named."""
        tallies = {name: t for host in self._hosts for name, t in host.tallies().items()}
        return {spec.name: tallies[spec.name] for spec in self._specs if spec.name in tallies}


def _apart(specs: Sequence[SinkSpec], hosting: Hosting) -> list[SinkSpec]:
    """The sinks for the delivery process."""
    movable = [
        spec for spec in specs if spec.url is not None and not spec.sink.training_process_only
    ]
    prefers_subprocess = any(spec.sink.prefers_subprocess for spec in movable)
    return movable if hosting == "process" or (hosting == "auto" and prefers_subprocess) else []

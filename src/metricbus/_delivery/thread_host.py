"""The consumers in this process, a thread each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from metricbus._common.records import Status
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.run import RunFolder


class ThreadDelivery:
    """Brings one run's journal to its sinks; `beside_training` if a training goes on here, too."""

    def __init__(
        self, folder: RunFolder, specs: Sequence[SinkSpec], *, beside_training: bool = False
    ) -> None:
        self._consumers = [
            Consumer(folder, spec, beside_training=beside_training) for spec in specs
        ]

    def start(self) -> None:
        """Starts a thread for each sink; they open their sinks there."""
        for consumer in self._consumers:
            name = f"metricbus-{consumer.spec.key}"
            threading.Thread(target=consumer.run, name=name, daemon=True).start()

    def request_flush(self) -> None:
        """Has every sink take what there is now."""
        for consumer in self._consumers:
            consumer.request_flush()

    def wake(self) -> None:
        """The journal has grown."""
        for consumer in self._consumers:
            consumer.wake()

    def flush(self, target: Mapping[str, int], deadline: float) -> bool:
        """Waits until every sink has dealt with these bytes of the segments; whether all have."""
        self.request_flush()
        return self._wait(
            lambda consumer: consumer.finished or consumer.tally().has_reached(target), deadline
        )

    def end(self, status: Status) -> None:
        """Has every sink take the rest and close; each does so at its own pace."""
        for consumer in self._consumers:
            consumer.end(status)

    def wait_until_closed(self, deadline: float) -> bool:
        """Whether all sinks have closed, at the latest when the (monotonic) clock says so.

        The others go on in the background for as long as the process lives.
        """
        return self._wait(lambda consumer: consumer.finished, deadline)

    def unfinished(self) -> list[str]:
        """The sinks that have not closed yet."""
        return [consumer.spec.name for consumer in self._consumers if not consumer.finished]

    def tallies(self) -> dict[str, Tally]:
        """What each sink has dealt with, by its name."""
        return {consumer.spec.name: consumer.tally() for consumer in self._consumers}

    def _wait(self, is_done: Callable[[Consumer], bool], deadline: float) -> bool:
        for consumer in self._consumers:
            with consumer.changed:
                while not is_done(consumer):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    consumer.changed.wait(min(left, threading.TIMEOUT_MAX))
        return all(is_done(consumer) for consumer in self._consumers)

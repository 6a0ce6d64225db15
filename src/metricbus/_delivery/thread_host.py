"""Runs consumers in this process, each in its own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from metricbus._common.records import Status
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._journal.run import RunFolder


class ThreadHost:
    """Delivers one run's journal to sinks; in the training process, it yields the GIL regularly."""

    def __init__(
        self, folder: RunFolder, specs: Sequence[SinkSpec], *, in_training_process: bool = False
    ) -> None:
        self._consumers = [
            Consumer(folder, spec, in_training_process=in_training_process) for spec in specs
        ]

    def start(self) -> None:
        """Start a thread for each sink; each thread opens its sink itself."""
        for consumer in self._consumers:
            name = f"metricbus-{consumer.spec.key}"
            try:
                threading.Thread(target=consumer.run, name=name, daemon=True).start()
            except RuntimeError as error:  # too many threads, which must not stop the training
                consumer.give_up(OSError(f"cannot start its thread: {error}"))

    def request_flush(self) -> None:
        """Ask every consumer to deliver everything that is in the journal now."""
        for consumer in self._consumers:
            consumer.request_flush()

    def wake(self) -> None:
        """Notify the consumers that the journal has grown."""
        for consumer in self._consumers:
            consumer.wake()

    def flush(self, target: Mapping[str, int], deadline: float) -> bool:
        """Wait for the sinks to reach the target offset of each segment; return whether all did."""
        self.request_flush()
        return self._wait(
            lambda consumer: consumer.finished or consumer.tally().has_reached(target), deadline
        )

    def end(self, status: Status) -> None:
        """Ask every consumer to deliver the rest and to close its sink."""
        for consumer in self._consumers:
            consumer.end(status)

    def wait_until_closed(self, deadline: float) -> bool:
        """Wait until all sinks are closed; return whether they are.

        Other sinks continue in the background as long as the process lives.
        """
        return self._wait(lambda consumer: consumer.finished, deadline)

    def unfinished(self) -> list[str]:
        """Return the names of the sinks that are not closed."""
        return [consumer.spec.name for consumer in self._consumers if not consumer.finished]

    def tallies(self) -> dict[str, Tally]:
        """Return the progress of each sink, by its name."""
        return {consumer.spec.name: consumer.tally() for consumer in self._consumers}

    def _wait(self, is_done: Callable[[Consumer], bool], deadline: float) -> bool:
        for consumer in self._consumers:
            with consumer.changed:
                while not is_done(consumer):
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        break
                    consumer.changed.wait(min(remaining, threading.TIMEOUT_MAX))
        return all(is_done(consumer) for consumer in self._consumers)

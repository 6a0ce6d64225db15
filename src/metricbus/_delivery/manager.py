"""Assigns the sinks of a bus to threads in this process or to the delivery process.

As soon as one of the sinks with a URL prefers a subprocess, all of them run in the delivery
process. Sinks that must stay in the application (standard logging, sink objects) run in threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from metricbus._common.records import Status
from metricbus._common.settings import Hosting
from metricbus._delivery.process_host import ProcessHost
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._delivery.thread_host import ThreadHost
from metricbus._journal.run import RunFolder

Host: TypeAlias = ThreadHost | ProcessHost


class DeliveryManager:
    """Delivers one run's journal to its sinks."""

    def __init__(
        self,
        folder: RunFolder,
        specs: Sequence[SinkSpec],
        attempt: int,
        hosting: Hosting,
        linger_secs: float,
    ) -> None:
        self._specs = specs
        subprocess_specs = _subprocess_specs(specs, hosting)
        thread_specs = [spec for spec in specs if spec not in subprocess_specs]
        self._hosts: list[Host] = []
        if thread_specs and hosting != "off":
            self._hosts.append(ThreadHost(folder, thread_specs, in_training_process=True))
        if subprocess_specs:
            self._hosts.append(ProcessHost(folder, subprocess_specs, attempt, linger_secs))

    def start(self) -> None:
        """Start delivery."""
        for host in self._hosts:
            host.start()

    def wake(self) -> None:
        """Notify the consumers that the journal has grown."""
        for host in self._hosts:
            host.wake()

    def flush(self, target: Mapping[str, int], deadline: float) -> bool:
        """Wait for the sinks to reach the target offset of each segment; return whether all did."""
        results = [host.flush(target, deadline) for host in self._hosts]
        return all(results)

    def end(self, status: Status) -> None:
        """Ask every consumer to deliver the rest and to close its sink."""
        for host in self._hosts:
            host.end(status)

    def wait_until_closed(self, deadline: float) -> bool:
        """Wait until all sinks are closed or the monotonic deadline; return whether they are."""
        results = [host.wait_until_closed(deadline) for host in self._hosts]
        return all(results)

    def sink_kinds(self) -> list[str]:
        """Return the kinds of the sinks, which the `sinks` of a definition refer to."""
        return [spec.kind for spec in self._specs]

    def unfinished(self) -> list[str]:
        """Return the names of the sinks that are not closed."""
        return [name for host in self._hosts for name in host.unfinished()]

    def tallies(self) -> dict[str, Tally]:
        """Return the progress of each sink, by its name, in the configured order."""
        tallies = {name: t for host in self._hosts for name, t in host.tallies().items()}
        return {spec.name: tallies[spec.name] for spec in self._specs if spec.name in tallies}


def _subprocess_specs(specs: Sequence[SinkSpec], hosting: Hosting) -> list[SinkSpec]:
    """Return the sinks that run in the delivery process."""
    movable = [spec for spec in specs if spec.url is not None and spec.sink.process != "training"]
    needs_process = any(spec.sink.process == "delivery" for spec in movable)
    return movable if hosting == "process" or (hosting == "auto" and needs_process) else []

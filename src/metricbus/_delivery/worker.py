"""The delivery process: brings a run's journal to its sinks, and outlives the training.

It is started on the run's folder alone, in a session of its own, and gets the sinks' URLs (which
may have secrets) by its environment. It looks at the journal, at the orders of the training
process, and whether that lives. When the run has ended, it takes the rest and closes the sinks;
when the training has died, it does the same, and says that the run was killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from metricbus._common.processes import this_process
from metricbus._common.records import Status
from metricbus._delivery.control_files import (
    WORKER_CONFIG_ENV,
    DeliveryStatus,
    RelayedWarning,
    WorkerConfig,
    delivery_status_file,
    worker_commands_file,
)
from metricbus._delivery.sink_specs import SinkSpec, specs_of
from metricbus._delivery.thread_host import ThreadDelivery
from metricbus._delivery.wake_pipe import Listener
from metricbus._journal.recovery import endings, mark_dead_run
from metricbus._journal.run import RunFolder
from metricbus.errors import JournalError

_log = logging.getLogger("metricbus.delivery")

# A training that uses W&B itself would share its wandb-core. That knows this process's run for as
# long as it lives, and refuses it to the next delivery process.
_NOT_INHERITED = ("WANDB_SERVICE", "METRICBUS_RUN_DIR", "METRICBUS_SINKS")
_HANDOVER_SECS = 5.0
_LOOK_EVERY = 0.05
_LOOK_WHEN_AWAITED = 0.003
_AWAITED_SECS = 0.2  # after it was asked for something
_LOOK_AROUND_EVERY = 1.0  # at other processes
_SAID_AT_MOST = 50
_NICENESS = 19


class Sayings(logging.Handler):
    """Keeps the newest warnings, for the training process to tell."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: deque[RelayedWarning] = deque(maxlen=_SAID_AT_MOST)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the warning."""
        now = max(time.time_ns(), self.kept[-1].time + 1 if self.kept else 0)
        self.kept.append(RelayedWarning(now, record.name, record.levelno, record.getMessage()))


class Worker:
    """What the process does."""

    def __init__(
        self, folder: RunFolder, specs: Sequence[SinkSpec], attempt: int, linger_secs: float
    ) -> None:
        self._folder = folder
        self._linger_secs = linger_secs
        self._delivery = ThreadDelivery(folder, specs)
        self._names = [spec.name for spec in specs]
        self._attempt = attempt
        self._owner = folder.load().process
        self._orders, self._status = (
            worker_commands_file(folder, attempt),
            delivery_status_file(folder, attempt),
        )
        self._sayings = Sayings()
        logging.getLogger("metricbus").addHandler(self._sayings)
        self._listener = Listener()
        self._awaited_until = 0.0
        self._hurries = 0
        self._grown_to = -1
        self._ended: Status | None = None
        self._deadline = float("inf")
        self._looked_around = 0.0
        self._waits_for: list[str] = []
        self._closing = False
        self._published: DeliveryStatus | None = None

    def run(self) -> bool:
        """Works until all is delivered, or for as long as it may; whether all is delivered."""
        self._delivery.start()
        while self._delivery.unfinished() and time.monotonic() < self._deadline:
            self._obey()
            self._look_around()
            self._publish()
            is_awaited = self._closing or time.monotonic() < self._awaited_until
            self._listener.wait(_LOOK_WHEN_AWAITED if is_awaited else _LOOK_EVERY)
        left = self._delivery.unfinished()
        if left:
            _log.warning(
                "gave up %.0f s after the run had ended on: %s. What is left is in the journal: "
                "metricbus deliver %s",
                self._linger_secs,
                ", ".join(left),
                self._folder.path,
            )
        self._publish(over=True)
        return not left

    def _obey(self) -> None:
        orders = self._orders.read()
        if orders is not None:
            if orders.hurries > self._hurries:
                self._hurries = orders.hurries
                self._awaited_until = time.monotonic() + _AWAITED_SECS
                self._delivery.request_flush()
            if orders.ended is not None:
                self._end(orders.ended)
            if orders.alone:
                self._linger(self._linger_secs)
        try:
            length = _length_of(self._folder.journal)
        except OSError:  # the folder has been deleted, which the consumers tell
            return
        if length != self._grown_to:
            self._grown_to = length
            self._delivery.wake()

    def _look_around(self) -> None:
        """At the training process; and when the run has ended, at who still writes."""
        if time.monotonic() >= self._looked_around + _LOOK_AROUND_EVERY:
            self._looked_around = time.monotonic()
            self._look_at_training()
        if self._ended is not None and not self._closing:
            segments = endings(self._folder.journal).items()
            self._waits_for = [name for name, ending in segments if ending.is_open]
            if not self._waits_for:
                self._close()

    def _look_at_training(self) -> None:
        try:
            run = mark_dead_run(self._folder)
        except (OSError, JournalError) as error:  # a full disk, say; it is tried again
            _log.info("cannot look after the run: %s", error)
            if not self._owner.is_alive():
                self._linger(self._linger_secs)
            return
        if run.attempt != self._attempt:  # somebody goes on with it, and delivers himself
            self._end("running")
            self._close()
            self._linger(_HANDOVER_SECS)
        elif run.status != "running":
            self._end(run.status)
            if not self._owner.is_alive():
                self._linger(self._linger_secs)

    def _end(self, status: Status) -> None:
        self._ended = self._ended or status

    def _close(self) -> None:
        if not self._closing and self._ended is not None:
            self._closing = True
            self._delivery.end(self._ended)

    def _linger(self, secs: float) -> None:
        """Goes on for so long at most; the shortest that was ever said counts."""
        self._deadline = min(self._deadline, time.monotonic() + secs)

    def _publish(self, *, over: bool = False) -> None:
        unfinished = self._delivery.unfinished()
        status = DeliveryStatus(
            this_process(),
            self._delivery.tallies(),
            [name for name in self._names if name not in unfinished],
            bool(self._waits_for) and self._is_up_to_date(),
            list(self._sayings.kept),
            over,
        )
        if status != self._published:
            try:
                self._status.write(status)
                self._published = status
            except OSError as error:
                _log.info("cannot tell how far it is: %s", error)

    def _is_up_to_date(self) -> bool:
        """Whether every sink has all that is in the journal."""
        journal = {path.stem: path.stat().st_size for path in self._folder.journal.iterdir()}
        return all(tally.has_reached(journal) for tally in self._delivery.tallies().values())


def _length_of(journal: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(journal))


def _lower_priority() -> None:
    """Where training wants the processor, training has it: on Linux, this gets what is idle."""
    os.nice(_NICENESS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """`METRICBUS_DELIVERY_TOLD={…} … FOLDER LINGER_SECS`, started by `delivery_process`."""
    folder, linger_secs = RunFolder(Path(sys.argv[1])), float(sys.argv[2])
    for variable in _NOT_INHERITED:
        os.environ.pop(variable, None)
    told = msgspec.convert(json.loads(os.environ.pop(WORKER_CONFIG_ENV)), type=WorkerConfig)
    sys.argv = told.argv
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO
    )
    _lower_priority()
    _log.info("process %d delivers %s", os.getpid(), folder.path)
    complete = Worker(folder, specs_of(told.sinks), told.attempt, linger_secs).run()
    _log.info("process %d ends, %s", os.getpid(), "all done" if complete else "not all done")
    logging.shutdown()
    if not complete:  # a backend that hangs must not hold up the end
        os._exit(1)

"""The training's side of the delivery process: starts it, watches it, and tells what it says."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from metricbus._common.processes import ProcessId
from metricbus._common.records import Status
from metricbus._delivery.control_files import (
    WORKER_CONFIG_ENV,
    DeliveryStatus,
    WorkerCommands,
    WorkerConfig,
    delivery_log,
    delivery_status_file,
    worker_commands_file,
)
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._delivery.thread_host import ThreadDelivery
from metricbus._delivery.wake_pipe import WakePipe
from metricbus._journal.run import RunFolder

_log = logging.getLogger("metricbus.delivery")

_LOOK_EVERY = 0.5
_LOOK_WHEN_AWAITED = 0.003
_STARTS = 5  # in a row
_STARTS_IN_VAIN = 2  # of a process that never came up
_ENOUGH_SECS = 60.0  # a process that lived that long makes up for those before it

_NO_STATUS = DeliveryStatus(ProcessId("", 0), {})

# `-P` and the path keep the imports of the process those of the training, whatever its folder has.
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from metricbus._delivery.worker import main; main()"
)


class ProcessDelivery:
    """Brings one run's journal to sinks that work in a process of their own.

    A process that dies is started again, up to five times in a row. Where it never comes up at all,
    threads do the work instead.
    """

    def __init__(
        self, folder: RunFolder, specs: Sequence[SinkSpec], attempt: int, linger_secs: float
    ) -> None:
        self._folder = folder
        self._specs = specs
        self._linger_secs = linger_secs
        self._directory = _working_directory()  # what relative locations are relative to
        self._attempt = attempt
        self._orders_file = worker_commands_file(folder, attempt)
        self._status_file = delivery_status_file(folder, attempt)
        self._orders = WorkerCommands()
        self._ordered = True  # whether the file has the orders
        self._ordering = threading.RLock()
        self._doorbell = WakePipe()
        self._status: DeliveryStatus | None = None
        self._pids: set[int] = set()
        self._told = 0
        self._telling = threading.RLock()
        self._gave_up = False
        self._instead: ThreadDelivery | None = None

    def start(self) -> None:
        """Starts the process, and the thread that watches it; `OSError` if that cannot be done."""
        self._folder.delivery.mkdir(exist_ok=True)
        self._orders_file.write(self._orders)
        first = self._launch()
        watch = threading.Thread(target=self._watch, args=(first,), daemon=True)
        watch.name = "metricbus-delivery"
        watch.start()

    def wake(self) -> None:
        """The process sees by itself that the journal has grown; threads do not."""
        if self._instead:
            self._instead.wake()

    def flush(self, target: Mapping[str, int], deadline: float) -> bool:
        """Waits until every sink has dealt with these bytes of the segments; whether all have."""
        self._order(hurries=self._orders.hurries + 1)
        done = self._wait(lambda: self._has_reached(target), deadline)
        return self._instead.flush(target, deadline) if self._instead else done

    def end(self, status: Status) -> None:
        """Has every sink take the rest and close."""
        self._order(ended=status)
        if self._instead:
            self._instead.end(status)

    def wait_until_closed(self, deadline: float) -> bool:
        """Whether all sinks have closed, at the latest when the (monotonic) clock says so.

        Otherwise the process goes on by itself; also, unawaited, where all that is left to wait for
        is other processes that have joined the run.
        """
        done = self._wait(lambda: not self.unfinished() or self._only_others_write(), deadline)
        if not done:
            self._order(alone=True)
        self._relay()
        return self._instead.wait_until_closed(deadline) if self._instead else done

    def unfinished(self) -> list[str]:
        """The sinks that have not closed yet."""
        if self._instead:
            return self._instead.unfinished()
        status = self._read()
        finished = status.finished if status else []
        return [spec.name for spec in self._specs if spec.name not in finished]

    def tallies(self) -> dict[str, Tally]:
        """What each sink has dealt with, by its name."""
        if self._instead:
            return self._instead.tallies()
        status = self._read()
        known = status.tallies if status else {}
        tallies = {spec.name: known.get(spec.name, Tally()) for spec in self._specs}
        if self._gave_up:
            error = f"the delivery process died again and again; see {delivery_log(self._folder)}"
            tallies = {name: tally._replace(error=error) for name, tally in tallies.items()}
        return tallies

    def _order(self, **changes: object) -> None:
        with self._ordering:
            self._orders = msgspec.structs.replace(self._orders, **changes)
            self._ordered = False
            self._write_orders()

    def _write_orders(self) -> None:
        """Writes the orders, unless that has been done; a full disk has them wait."""
        with self._ordering:
            if not self._ordered:
                try:
                    self._orders_file.write(self._orders)
                    self._ordered = True
                    self._doorbell.ring()
                except OSError as error:
                    _log.debug("the delivery process does not know the orders yet: %s", error)

    def _read(self) -> DeliveryStatus | None:
        """The status of our own process: one of an earlier attempt may still be at work."""
        status = self._status_file.read()
        if status is not None and status.process.pid in self._pids:
            self._status = status
        return self._status

    def _has_reached(self, target: Mapping[str, int]) -> bool:
        unfinished = self.unfinished()
        return all(
            tally.has_reached(target)
            for name, tally in self.tallies().items()
            if name in unfinished
        )

    def _only_others_write(self) -> bool:
        status = self._read()
        return status is not None and status.waits_only

    def _wait(self, is_done: Callable[[], bool], deadline: float) -> bool:
        while not (done := is_done()) and not self._is_over():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, _LOOK_WHEN_AWAITED))
        return done

    def _is_over(self) -> bool:
        """Whether nothing more comes of waiting."""
        return self._gave_up or self._instead is not None or (self._status or _NO_STATUS).over

    def _launch(self) -> subprocess.Popen[bytes]:
        if not sys.executable or getattr(sys, "frozen", False):
            raise OSError("there is no Python interpreter to start")
        urls = [spec.url.text for spec in self._specs if spec.url]
        told = WorkerConfig(urls, [str(argument) for argument in sys.argv], self._attempt)
        arguments = [json.dumps(_import_path()), str(self._folder.path), str(self._linger_secs)]
        with open(delivery_log(self._folder), "ab") as log:
            bell = self._doorbell.connect()
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _COMMAND, *arguments],
                    cwd=self._directory,
                    env={**os.environ, WORKER_CONFIG_ENV: json.dumps(msgspec.to_builtins(told))},
                    stdin=bell,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            finally:
                os.close(bell)
        self._pids.add(process.pid)
        return process

    # The thread that watches.

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        try:
            self._watch_over(process)
        finally:
            self._doorbell.disconnect()

    def _watch_over(self, process: subprocess.Popen[bytes]) -> None:
        starts, started = 1, time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY)
            self._write_orders()
            self._relay()
            code = process.poll()
            status = self._read()
            if code is None:
                continue
            if status is not None and status.process.pid == process.pid and status.over:
                return
            if time.monotonic() - started > _ENOUGH_SECS:
                starts = 0
            if starts >= (_STARTS_IN_VAIN if status is None else _STARTS):
                self._give_up(code, starts)
                return
            starts += 1
            _log.warning(
                "the delivery process ended (%s); starting it again (start %d of %d)",
                _in_words(code),
                starts,
                _STARTS,
            )
            time.sleep(_LOOK_EVERY * 2.0 ** (starts - 2))
            started = time.monotonic()
            try:
                process = self._launch()
            except OSError as error:
                self._give_up(str(error), starts)
                return

    def _relay(self) -> None:
        """Tells what the process had to say."""
        with self._telling:
            status = self._read()
            new = [one for one in (status.said if status else []) if one.time > self._told]
            if new:
                self._told = new[-1].time
        for saying in new:  # without the lock: a handler may close the bus
            logging.getLogger(saying.logger).log(saying.level, "%s", saying.text)

    def _give_up(self, code: int | str, starts: int) -> None:
        if self._read() is None:  # it never came up
            _log.warning(
                "no delivery process can be started (%s; see %s): threads deliver instead",
                _in_words(code),
                delivery_log(self._folder),
            )
            self._instead = instead = ThreadDelivery(
                self._folder, self._specs, beside_training=True
            )
            instead.start()
            if self._orders.ended:
                instead.end(self._orders.ended)
        else:
            self._gave_up = True
            _log.error(
                "the delivery process died %d times in a row, the last time by %s: see %s. "
                "Everything is in the journal: metricbus deliver %s",
                starts,
                _in_words(code),
                delivery_log(self._folder),
                self._folder.path,
            )


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been deleted
        return None


def _import_path() -> list[str]:
    """The training's, with its own folder last: a `wandb.py` in it may be the training itself."""
    first, *others = [os.fspath(entry) for entry in sys.path if isinstance(entry, str | Path)]
    return [*others, first]


def _in_words(code: int | str) -> str:
    if isinstance(code, str):
        return code
    return f"signal {-code}" if code < 0 else f"exit status {code}"

"""The training process's side of the delivery process: starts, supervises and commands it."""

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
    delivery_status_file,
    worker_commands_file,
)
from metricbus._delivery.report import Tally
from metricbus._delivery.sink_specs import SinkSpec
from metricbus._delivery.thread_host import ThreadHost
from metricbus._delivery.wake_pipe import WakePipe
from metricbus._journal.run import RunFolder

_log = logging.getLogger("metricbus.delivery")

_POLL_SECS = 0.5
_WAIT_POLL_SECS = 0.003

# A process that lives this long resets the count of starts.
_STABLE_SECS = 60.0
_MAX_STARTS = 5
_MAX_STARTS_WITHOUT_STATUS = 2

_NO_STATUS = DeliveryStatus(ProcessId("", 0), {})

# `-P` and the explicit path make the process import the same modules as the training, whatever
# files its working directory contains.
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from metricbus._delivery.worker_process import main; main()"
)


class ProcessHost:
    """Delivers one run's journal to sinks that run in a separate process.

    A process that dies is restarted, up to five times in a row. If no process ever comes up,
    threads deliver instead.
    """

    def __init__(
        self, folder: RunFolder, specs: Sequence[SinkSpec], attempt: int, linger_secs: float
    ) -> None:
        self._folder = folder
        self._log_file = folder.delivery / "delivery.log"
        self._specs = specs
        self._linger_secs = linger_secs
        self._directory = _working_directory()  # relative locations refer to it
        self._attempt = attempt
        self._commands = WorkerCommands()
        self._commands_file = worker_commands_file(folder, attempt)
        self._commands_written = True
        self._commands_lock = threading.RLock()
        self._wake_pipe = WakePipe()
        self._status = _NO_STATUS
        self._status_file = delivery_status_file(folder, attempt)
        self._pids: set[int] = set()
        self._relayed_until = 0  # time of the last warning that was logged here
        self._relay_lock = threading.RLock()
        self._gave_up = False
        self._fallback: ThreadHost | None = None

    def start(self) -> None:
        """Start the process and the thread that supervises it; threads replace it if it cannot."""
        try:
            self._folder.delivery.mkdir(exist_ok=True)
            self._commands_file.write(self._commands)
            process = self._launch()
            threading.Thread(
                target=self._supervise, args=(process,), name="metricbus-delivery", daemon=True
            ).start()
        except Exception as error:  # no failure of delivery may stop the training
            self._give_up(str(error), 0)

    def wake(self) -> None:
        """Notify fallback threads that the journal has grown; the process polls it."""
        if self._fallback:
            self._fallback.wake()

    def flush(self, target: Mapping[str, int], deadline: float) -> bool:
        """Wait for the sinks to reach the target offset of each segment; return whether all did."""
        self._send(flush_requests=self._commands.flush_requests + 1)
        reached = self._wait(lambda: self._has_reached(target), deadline)
        return self._fallback.flush(target, deadline) if self._fallback else reached

    def end(self, status: Status) -> None:
        """Ask the process to deliver the rest and to close the sinks."""
        self._send(final_status=status)
        if self._fallback:
            self._fallback.end(status)

    def wait_until_closed(self, deadline: float) -> bool:
        """Wait until all sinks are closed or the monotonic deadline; return whether they are.

        The process continues on its own after the deadline. It also does so, without waiting here,
        if it only waits for other processes of the run to finish.
        """
        closed = self._wait(
            lambda: not self.unfinished() or self._read_status().waits_for_writers, deadline
        )
        if not closed:
            self._send(is_detached=True)
        self._relay_warnings()
        return self._fallback.wait_until_closed(deadline) if self._fallback else closed

    def unfinished(self) -> list[str]:
        """Return the names of the sinks that are not closed."""
        if self._fallback:
            return self._fallback.unfinished()
        finished = self._read_status().finished
        return [spec.name for spec in self._specs if spec.name not in finished]

    def tallies(self) -> dict[str, Tally]:
        """Return the progress of each sink, by its name."""
        if self._fallback:
            return self._fallback.tallies()
        known = self._read_status().tallies
        tallies = {spec.name: known.get(spec.name, Tally()) for spec in self._specs}
        if self._gave_up:
            error = f"the delivery process died repeatedly; see {self._log_file}"
            replace = msgspec.structs.replace
            return {name: replace(tally, error=error) for name, tally in tallies.items()}
        return tallies

    def _send(self, **changes: object) -> None:
        with self._commands_lock:
            self._commands = msgspec.structs.replace(self._commands, **changes)
            self._commands_written = False
            self._write_commands()

    def _write_commands(self) -> None:
        """Write commands that have changed; if that fails, the supervisor thread retries it."""
        with self._commands_lock:
            if not self._commands_written:
                try:
                    self._commands_file.write(self._commands)
                    self._commands_written = True
                    self._wake_pipe.wake()
                except OSError as error:
                    _log.debug("cannot write the commands for the delivery process: %s", error)

    def _read_status(self) -> DeliveryStatus:
        """Read the status, unless the process of an earlier attempt has written it."""
        status = self._status_file.read()
        if status is not None and status.process.pid in self._pids:
            self._status = status
        return self._status

    def _has_reached(self, target: Mapping[str, int]) -> bool:
        tallies = self.tallies()
        return all(tallies[name].has_reached(target) for name in self.unfinished())

    def _wait(self, is_done: Callable[[], bool], deadline: float) -> bool:
        while not (done := is_done()) and not self._has_stopped():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            time.sleep(min(remaining, _WAIT_POLL_SECS))
        return done

    def _has_stopped(self) -> bool:
        """Check whether the process will make no further progress."""
        return self._gave_up or bool(self._fallback) or self._status.is_exiting

    def _launch(self) -> subprocess.Popen[bytes]:
        if not sys.executable or getattr(sys, "frozen", False):
            raise OSError("there is no Python interpreter to run it")
        urls = [spec.url.text for spec in self._specs if spec.url]
        argv = [str(argument) for argument in sys.argv]
        # msgspec cannot encode surrogates, which argv may contain; json can.
        config = msgspec.to_builtins(WorkerConfig(urls, argv, self._attempt))
        arguments = [json.dumps(_import_path()), str(self._folder.path), str(self._linger_secs)]
        with open(self._log_file, "ab") as log:
            wake_pipe = self._wake_pipe.connect()
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _COMMAND, *arguments],
                    cwd=self._directory,
                    env={**os.environ, WORKER_CONFIG_ENV: json.dumps(config)},
                    stdin=wake_pipe,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            finally:
                os.close(wake_pipe)
        self._pids.add(process.pid)
        return process

    # Called from the supervisor thread.

    def _supervise(self, process: subprocess.Popen[bytes]) -> None:
        try:
            self._restart_until_done(process)
        finally:
            self._wake_pipe.disconnect()

    def _restart_until_done(self, process: subprocess.Popen[bytes]) -> None:
        starts, started = 1, time.monotonic()
        while True:
            time.sleep(_POLL_SECS)
            self._write_commands()
            self._relay_warnings()
            code = process.poll()
            status = self._read_status()
            if code is None:
                continue
            if status.process.pid == process.pid and status.is_exiting:
                return
            if time.monotonic() - started > _STABLE_SECS:
                starts = 0
            if starts >= (_MAX_STARTS_WITHOUT_STATUS if status is _NO_STATUS else _MAX_STARTS):
                self._give_up(_describe_exit(code), starts)
                return
            starts += 1
            _log.warning(
                "the delivery process has died (%s); restarting it (start %d of %d)",
                _describe_exit(code),
                starts,
                _MAX_STARTS,
            )
            time.sleep(_POLL_SECS * 2.0 ** (starts - 2))
            started = time.monotonic()
            try:
                process = self._launch()
            except OSError as error:
                self._give_up(str(error), starts)
                return

    def _relay_warnings(self) -> None:
        """Log the warnings of the delivery process here."""
        with self._relay_lock:
            warnings = [w for w in self._read_status().warnings if w.time > self._relayed_until]
            if warnings:
                self._relayed_until = warnings[-1].time
        # Log without the lock: a log handler may close the bus.
        for warning in warnings:
            logging.getLogger(warning.logger).log(warning.level, "%s", warning.text)

    def _give_up(self, reason: str, starts: int) -> None:
        if self._read_status() is _NO_STATUS:  # no process ever came up
            _log.warning(
                "cannot start a delivery process (%s; see %s); delivering from threads instead",
                reason,
                self._log_file,
            )
            self._fallback = fallback = ThreadHost(
                self._folder, self._specs, in_training_process=True
            )
            fallback.start()
            if self._commands.final_status:
                fallback.end(self._commands.final_status)
        else:
            self._gave_up = True
            _log.error(
                "the delivery process died %d times in a row, most recently with %s; see %s. "
                "All values are in the journal. To deliver them, run: metricbus deliver %s",
                starts,
                reason,
                self._log_file,
                self._folder.path,
            )


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been deleted
        return None


def _import_path() -> list[str]:
    """Return the training's import path, with the script's own folder last.

    A file in it, such as `wandb.py`, may be the training script itself.
    """
    first, *others = [os.fspath(entry) for entry in sys.path if isinstance(entry, str | Path)]
    return [*others, first]


def _describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"

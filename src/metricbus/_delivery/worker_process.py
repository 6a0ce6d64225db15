"""The delivery process: delivers a run's journal to its sinks, and outlives the training process.

It is started with the run folder, in its own session, and receives the sink URLs, which may contain
secrets, in an environment variable. It watches the journal, the commands of the training process,
and whether that process is alive. When the run has ended, it delivers the rest and closes the
sinks. If the training process has died, it does the same and marks the run as killed.
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
from metricbus._delivery.thread_host import ThreadHost
from metricbus._delivery.wake_pipe import WakePipeReader
from metricbus._journal.crash_recovery import mark_dead_run, segment_states
from metricbus._journal.run import RunFolder
from metricbus.errors import JournalError

_log = logging.getLogger("metricbus.delivery")

# WANDB_SERVICE is that of a training that uses W&B itself. Its wandb-core would keep this process's
# run open as long as it lives, and refuse it to the next delivery process.
_NOT_INHERITED = ("WANDB_SERVICE", "METRICBUS_RUN_DIR", "METRICBUS_SINKS")
_POLL_SECS = 0.05
_FAST_POLL_SECS = 0.003
_FAST_POLL_DURATION_SECS = 0.2  # after a request
_TRAINING_CHECK_SECS = 1.0
_HANDOVER_SECS = 5.0
_MAX_RELAYED_WARNINGS = 50
_NICENESS = 19


class WarningRecorder(logging.Handler):
    """Log handler that keeps the latest warnings for the training process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: deque[RelayedWarning] = deque(maxlen=_MAX_RELAYED_WARNINGS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the warning, with a time that is greater than all before."""
        now = max(time.time_ns(), self.warnings[-1].time + 1 if self.warnings else 0)
        self.warnings.append(RelayedWarning(now, record.name, record.levelno, record.getMessage()))


class Worker:
    """Delivers one attempt of a run from the delivery process."""

    def __init__(
        self, folder: RunFolder, specs: Sequence[SinkSpec], attempt: int, linger_secs: float
    ) -> None:
        self._folder = folder
        self._linger_secs = linger_secs
        self._host = ThreadHost(folder, specs)
        self._names = [spec.name for spec in specs]
        self._attempt = attempt
        self._training_process = folder.load().process
        self._commands_file = worker_commands_file(folder, attempt)
        self._status_file = delivery_status_file(folder, attempt)
        self._recorder = WarningRecorder()
        logging.getLogger("metricbus").addHandler(self._recorder)
        self._wake_pipe = WakePipeReader()
        self._fast_poll_until = 0.0
        self._flush_requests = 0
        self._journal_size = -1
        self._final_status: Status | None = None
        self._deadline = float("inf")
        self._training_checked = 0.0
        self._open_segments: list[str] = []
        self._is_closing = False
        self._published: DeliveryStatus | None = None

    def run(self) -> bool:
        """Deliver until everything is delivered or time is up; return whether everything is."""
        self._host.start()
        while self._host.unfinished() and time.monotonic() < self._deadline:
            self._handle_commands()
            self._check_run()
            self._publish_status()
            is_fast = self._is_closing or time.monotonic() < self._fast_poll_until
            self._wake_pipe.wait(_FAST_POLL_SECS if is_fast else _POLL_SECS)
        unfinished = self._host.unfinished()
        if unfinished:
            _log.warning(
                "stopped %.0f s after the end of the run, with undelivered values for: %s. They "
                "are in the journal. To deliver them, run: metricbus deliver %s",
                self._linger_secs,
                ", ".join(unfinished),
                self._folder.path,
            )
        self._publish_status(is_exiting=True)
        return not unfinished

    def _handle_commands(self) -> None:
        commands = self._commands_file.read()
        if commands is not None:
            if commands.flush_requests > self._flush_requests:
                self._flush_requests = commands.flush_requests
                self._fast_poll_until = time.monotonic() + _FAST_POLL_DURATION_SECS
                self._host.request_flush()
            if commands.final_status is not None:
                self._end(commands.final_status)
            if commands.is_detached:
                self._limit_time(self._linger_secs)
        try:
            size = sum(entry.stat().st_size for entry in os.scandir(self._folder.journal))
        except OSError:  # the folder was deleted, which the consumers report
            return
        if size != self._journal_size:
            self._journal_size = size
            self._host.wake()

    def _check_run(self) -> None:
        """Check the training process; once the run has ended, wait for its other writers."""
        if time.monotonic() >= self._training_checked + _TRAINING_CHECK_SECS:
            self._training_checked = time.monotonic()
            self._check_training_process()
        if self._final_status is not None and not self._is_closing:
            segments = segment_states(self._folder.journal).items()
            self._open_segments = [name for name, state in segments if state.is_open]
            if not self._open_segments:
                self._close()

    def _check_training_process(self) -> None:
        try:
            run = mark_dead_run(self._folder)
        except (OSError, JournalError) as error:  # for example a full disk; retried
            _log.info("cannot check the state of the run: %s", error)
            if not self._training_process.is_alive():
                self._limit_time(self._linger_secs)
            return
        if run.attempt != self._attempt:  # another process has resumed the run and delivers it
            self._end("running")
            self._close()
            self._limit_time(_HANDOVER_SECS)
        elif run.status != "running":
            self._end(run.status)
            if not self._training_process.is_alive():
                self._limit_time(self._linger_secs)

    def _end(self, status: Status) -> None:
        self._final_status = self._final_status or status

    def _close(self) -> None:
        if not self._is_closing and self._final_status is not None:
            self._is_closing = True
            self._host.end(self._final_status)

    def _limit_time(self, secs: float) -> None:
        """Stop at the latest after `secs`; the earliest of all such deadlines applies."""
        self._deadline = min(self._deadline, time.monotonic() + secs)

    def _publish_status(self, *, is_exiting: bool = False) -> None:
        unfinished = self._host.unfinished()
        status = DeliveryStatus(
            this_process(),
            self._host.tallies(),
            [name for name in self._names if name not in unfinished],
            bool(self._open_segments) and self._is_up_to_date(),
            list(self._recorder.warnings),
            is_exiting,
        )
        if status != self._published:
            try:
                self._status_file.write(status)
                self._published = status
            except OSError as error:
                _log.info("cannot write the delivery status: %s", error)

    def _is_up_to_date(self) -> bool:
        """Check whether every sink has processed everything in the journal."""
        journal = {path.stem: path.stat().st_size for path in self._folder.journal.iterdir()}
        return all(tally.has_reached(journal) for tally in self._host.tallies().values())


def _lower_priority() -> None:
    """Give the training precedence; on Linux, this process only gets idle processor time."""
    os.nice(_NICENESS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # forbidden in some containers
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Run the process that `ProcessHost` starts; the arguments are FOLDER and LINGER_SECS."""
    folder, linger_secs = RunFolder(Path(sys.argv[1])), float(sys.argv[2])
    for variable in _NOT_INHERITED:
        os.environ.pop(variable, None)
    config = msgspec.convert(json.loads(os.environ.pop(WORKER_CONFIG_ENV)), type=WorkerConfig)
    sys.argv = config.argv
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO
    )
    _lower_priority()
    _log.info("delivery process %d started for %s", os.getpid(), folder.path)
    complete = Worker(folder, specs_of(config.sinks), config.attempt, linger_secs).run()
    outcome = "delivered everything" if complete else "left values undelivered"
    _log.info("delivery process %d %s", os.getpid(), outcome)
    logging.shutdown()
    if not complete:
        os._exit(1)  # a hanging backend must not delay the exit

"""The core of a bus: its parts, its state, and how it goes from one state to another."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from metricbus._aggregate.rules import Definition, Definitions, check_definition
from metricbus._bus import shutdown
from metricbus._bus.arguments import resolve_arguments
from metricbus._bus.epoch_sync import EpochSync
from metricbus._bus.lazy_queue import LazyQueue
from metricbus._bus.live_run import RunConfig, make_update
from metricbus._bus.process_copies import CopiedRun, picklable
from metricbus._common.clock import Clock
from metricbus._common.records import Status
from metricbus._common.settings import ProgressMode, Settings, env_variable, read_env_setting
from metricbus._delivery.report import DeliveryError, Report
from metricbus._ingest.queue import CallQueue
from metricbus._ingest.recorder import Recorder, do_nothing
from metricbus._ingest.torchmetrics_values import TorchmetricsValues
from metricbus._journal.run import Run, plain_config

if TYPE_CHECKING:
    from metricbus._bus.session import Session

_log = logging.getLogger("metricbus")

_OPENING_VARIABLES = (env_variable("sinks"), env_variable("run_dir"))


class State(Enum):
    """The states of a bus, and what its calls do in each of them.

    |          | session  | log()          | flush(), close(), stats() | epochs, sync, checkpoints |
    |----------|----------|----------------|---------------------------|---------------------------|
    | IDLE     | none     | opens the bus  | are empty                 | move the clock            |
    | OPEN     | open     | records        | count and deliver         | move the clock and reduce |
    | ASLEEP   | none yet | joins, records | count what was dropped    | join, then as in OPEN     |
    | CLOSED   | closed   | drops, counts  | wait again for the sinks  | move the clock            |
    | DISABLED | none     | does nothing   | are empty                 | move the clock            |

    IDLE is the process-wide bus before it is configured. ASLEEP is a copy in another process before
    it joins the run. Under `strict`, `log()` raises `ClosedError` on a CLOSED bus. `define()` works
    in every state: a session that is opened or joined later receives the earlier definitions.
    """

    IDLE = "idle"
    OPEN = "open"
    ASLEEP = "asleep"
    CLOSED = "closed"
    DISABLED = "disabled"


class BusCore:
    """The parts of a bus: its recorder, its session if it has one, and the ends of its epochs.

    `log` is what the calls to `MetricBus.log` run in the current state. `config` can only grow.
    `copied_run` is the run that a copy of a bus in another process belongs to. `bus` is the
    `MetricBus` that has this core. `open_idle` replaces an IDLE core as the first `log()` does.
    """

    bus: Any = None
    open_idle: Callable[[], BusCore] | None = None
    log: Callable[..., None]

    def __init__(
        self, settings: Settings, config: object = None, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self.config = RunConfig(self, {} if config is None else config)
        self.recorder = Recorder(settings, clock)
        self.definitions = Definitions()
        self.phases: dict[str, str] = {}
        self.epoch_sync = EpochSync(self.recorder, self.definitions, settings)
        self.close_hooks: list[Callable[[], object]] = []
        self.copied_run: CopiedRun | None = None
        self.enter(State.IDLE)

    @classmethod
    def open(
        cls, name: str | None, arguments: Mapping[str, Any], clock: Clock | None = None
    ) -> BusCore:
        """Return a core in the state OPEN or DISABLED, for the arguments of `MetricBus`."""
        settings, config = resolve_arguments(name, arguments), arguments.get("config")
        core = cls(settings, config, clock)
        if settings.disabled:
            core.enter(State.DISABLED)
            return core
        # Imported here, because a bus that never opens a run should not pay for this import.
        from metricbus._bus.open_run import open_session

        name = name if name is not None else arguments.get("run")
        session = open_session(settings, name, core.config, arguments)
        if session.run is not None and (config is None or session.run.attempt > 1):
            # A resumed or joined run has a config already.
            core.config = RunConfig(core, {**session.run.config, **core.config})
        core.enter(State.OPEN, session)
        return core

    def enter(self, state: State, session: Session | None = None) -> None:
        """Go to a state. No other method changes the state, the session, or what `log` does."""
        self.state = state
        self.session = session
        recorder = self.recorder
        if session is not None:
            recorder.queue = session.queue
        elif state is State.ASLEEP:
            recorder.queue = LazyQueue(self._join_run)
        recorder.run_id = self.run.id if self.run else ""
        self.log = recorder.log
        if not self.is_on:
            self.log = do_nothing
        elif self.settings.flush_steps is not None:
            self.log = recorder.log_and_flush(self.settings.flush_steps)
        if state is State.OPEN:
            shutdown.register(self)
            if self.settings.sigterm == "flush":
                shutdown.flush_at_sigterm()

    @property
    def is_on(self) -> bool:
        """Whether the bus records values; true also before a copy joins, and after `close()`."""
        return self.state in (State.OPEN, State.ASLEEP, State.CLOSED)

    @property
    def will_log(self) -> bool:
        """Whether the bus is on, or the environment opens it at its first `log()`."""
        opens = self.state is State.IDLE and any(name in os.environ for name in _OPENING_VARIABLES)
        return self.is_on or opens

    @property
    def progress(self) -> ProgressMode:
        """The setting for progress bars. A bus that was never configured reads the environment."""
        if self.settings != Settings():
            return self.settings.progress
        return cast(ProgressMode, read_env_setting("progress"))

    @property
    def run(self) -> Run | None:
        """The run, None without one and on a rank that does not write."""
        if self.session is not None:
            return self.session.run
        return self.copied_run.run if self.copied_run else None

    @property
    def folder(self) -> Path | None:
        """The folder of the run."""
        owner = self.session or self.copied_run
        return owner.folder.path if owner and owner.folder else None

    def opened(self) -> BusCore:
        """Return this core, or the one that opens in its place if the environment says so."""
        return self.open_idle() if self.state is State.IDLE and self.open_idle else self

    def joined_session(self) -> Session | None:
        """Return the session. A copy joins its run first."""
        if self.state is State.ASLEEP:
            self.recorder.queue.on_high_water()
        return self.session

    def define(self, definition: Definition, *, default: bool) -> None:
        """Check and apply a definition."""
        check_definition(definition)
        if self.session is not None:
            self.session.define(definition, default=default)
        self.definitions.add(definition, default=default)

    def update_run(self, what: str, **fields: Any) -> bool:
        """Write an update of the run's config, tags or summary. Return False after `close()`."""
        clock = self.recorder.clock
        update = make_update(what, step=clock.step, epoch=clock.epoch, **fields)
        session = self.joined_session()
        return session is None or session.update_run(update, what)

    # Flushing and closing

    def stats(self) -> Report:
        """Return the current counts."""
        if self.session is not None:
            return self.session.stats()
        return Report(dropped=self.recorder.queue.dropped if self.state is State.ASLEEP else 0)

    def end(self, status: Status, timeout: float) -> Report:
        """End the run, or wait again for the sinks of a run that has been ended."""
        session = self.session
        assert session is not None
        try:
            while self.close_hooks:
                hook = self.close_hooks.pop()
                try:
                    hook()
                except Exception as error:  # user code; the run is closed regardless
                    _log.warning("A before_close() function failed: %r", error)
            self.epoch_sync.log_remaining_metrics(session)
            return session.close(status, timeout)
        finally:
            # After Ctrl-C during this wait, the end of the script must not wait again.
            shutdown.unregister(self)
            self.enter(State.CLOSED, session)

    def clamp_timeout(self, timeout: float | None) -> float:
        """Return a timeout that threads accept; None stands for the setting `close_timeout`."""
        secs = self.settings.close_timeout if timeout is None else float(timeout)
        return min(max(secs, 0.0), threading.TIMEOUT_MAX)

    def check_complete(self, report: Report, call: str) -> Report:
        """Return the report. Under `strict`, raise `DeliveryError` if values are missing."""
        if self.settings.strict and not report.complete:
            raise DeliveryError(f"{call}: not everything was delivered\n{report}", report)
        return report

    def close_at_exit(self, status: Status) -> None:
        """End the run at the end of the script. Never raises."""
        if self.session is not None:
            self.end(status, self.settings.close_timeout)

    def save_at_sigterm(self) -> None:
        """Write everything to the journal within two seconds. The process is about to end."""
        if self.session is not None:
            self.session.save()

    # Copies in other processes

    def after_fork_in_child(self) -> None:
        """Fall asleep: the threads of the session exist in the parent only."""
        self.recorder.metrics = TorchmetricsValues()  # the parent computes the metrics
        self.close_hooks = []
        self._become_copy(self._copied())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a copy of this core: ASLEEP, or DISABLED if this one is off."""
        config = self.run.config if self.run else plain_config(self.config)
        clock = (self.recorder.clock.step, self.recorder.clock.epoch)
        copied_run = self._copied() if self.is_on else None
        state = clock, self.phases, picklable(self.definitions), copied_run
        return BusCore, (self.settings, config), state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        clock, self.phases, definitions, copied_run = state
        self.recorder.clock.step, self.recorder.clock.epoch = clock
        for definition in definitions:
            self.definitions.add(definition)
        if copied_run is None:
            self.enter(State.DISABLED)
        else:
            self._become_copy(copied_run)

    def _copied(self) -> CopiedRun:
        if self.session is None:
            assert self.copied_run is not None
            return self.copied_run
        return CopiedRun(self.session.folder, self.session.run, self.session.initial_rank)

    def _become_copy(self, copied_run: CopiedRun) -> None:
        self.copied_run = copied_run
        self.recorder.clock.owner_thread = threading.get_ident()
        self.enter(State.ASLEEP)

    def _join_run(self) -> CallQueue:
        assert self.copied_run is not None
        from metricbus._bus.open_run import join_run

        session = join_run(self.copied_run, self.settings)
        for definition in self.definitions:
            session.define(definition, default=False)
        self.enter(State.OPEN, session)
        return session.queue

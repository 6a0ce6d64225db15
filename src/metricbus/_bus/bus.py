"""`MetricBus`, the only object that a training loop sees.

What it logs goes into a queue (`Recorder`); everything behind the queue is the `Session`'s.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from metricbus._aggregate.reductions import AcrossRanks, Reducer
from metricbus._aggregate.rules import Definition, Definitions, checked
from metricbus._bus import shutdown
from metricbus._bus.epoch_sync import EpochSync
from metricbus._bus.loops import Epochs, Steps
from metricbus._bus.progress import Progress
from metricbus._bus.scope import Scope
from metricbus._common.clock import both_drive, check_step
from metricbus._common.device_values import Pending
from metricbus._common.records import Number, Status
from metricbus._common.settings import Bars, Fsync, Hosting, Settings, resolve
from metricbus._delivery.report import DeliveryError, Report
from metricbus._ingest.queue import Overflow
from metricbus._journal.run import Run, RunFolder
from metricbus.sinks import Sink

if TYPE_CHECKING:
    from metricbus._bus.session import Session

T = TypeVar("T")

_RESUME: dict[object, str] = {True: "allow", False: "never"}


class MetricBus(EpochSync):
    """Logs a run's metrics once, for any number of backends.

    with MetricBus(run="digits", config={"lr": 3e-4}) as bus:
        for x, y in bus.steps(loader):
            bus.log("train/loss", train_step(x, y))

    `run` is a label, `id` names the run's folder under `dir` and is made up if left out. `sinks` is
    a text of sink URLs with commas between them, or a list of URLs and `Sink` objects. With
    `resume=True` the run of this id or name goes on if there is one, with `"must"` in any case. All
    other settings, and those left out here, are in docs/environment.md.

    Raises `ConfigError` (and its kinds) when something in this cannot work. After that, nothing but
    misuse that shows at the call ever raises into the training loop.
    """

    _session: Session | None
    _config: Mapping[str, Any]

    def __init__(
        self,
        run: str | None = None,
        *,
        id: str | None = None,
        project: str | None = None,
        config: Mapping[str, Any] | None = None,
        sinks: str | Sequence[str | Sink] | None = None,
        dir: str | os.PathLike[str] | None = None,
        tags: Sequence[str] = (),
        group: str | None = None,
        notes: str | None = None,
        resume: bool | Literal["must"] | None = None,
        flush_secs: float | None = None,
        batch_size: int | None = None,
        flush_bytes: int | None = None,
        flush_steps: int | None = None,
        queue_size: int | None = None,
        queue_bytes: int | None = None,
        overflow: Overflow | None = None,
        block_secs: float | None = None,
        close_timeout: float | None = None,
        delivery: Hosting | None = None,
        linger_secs: float | None = None,
        fsync: Fsync | None = None,
        sigterm: Literal["default", "flush"] | None = None,
        ranks: int | Literal["all", "local0"] | None = None,
        sync_secs: float | None = None,
        progress: Bars | None = None,
        strict: bool | None = None,
        disabled: bool | None = None,
    ) -> None:
        self._begin_idle()
        if isinstance(tags, str):
            raise TypeError(f"tags= takes a list of texts, not a text: write tags=[{tags!r}]")
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(
                f"config= takes a mapping of names to values, not {type(config).__name__}; "
                "of an argparse.Namespace, write config=vars(args)"
            )
        self._config = MappingProxyType(dict(config or {}))
        self._settings, _ = resolve(
            {
                "run": run,
                "project": project,
                "dir": None if dir is None else os.fspath(dir),
                "resume": _RESUME.get(resume, resume),
                "flush_secs": flush_secs,
                "batch_size": batch_size,
                "flush_bytes": flush_bytes,
                "flush_steps": flush_steps,
                "queue_size": queue_size,
                "queue_bytes": queue_bytes,
                "overflow": overflow,
                "block_secs": block_secs,
                "close_timeout": close_timeout,
                "delivery": delivery,
                "linger_secs": linger_secs,
                "fsync": fsync,
                "sigterm": sigterm,
                "ranks": None if ranks is None else str(ranks),
                "sync_secs": sync_secs,
                "progress": progress,
                "strict": strict,
                "disabled": disabled,
            }
        )
        if self._settings.disabled:
            self._switch_off()
            return
        from metricbus._bus.open_run import (  # who never opens a run never pays for it
            About,
            open_engine,
        )

        about = About(id, run, self._config, tags, group, notes)
        self._session = open_engine(self._settings, about, sinks)
        self._queue = self._session.queue
        if config is None and self._session.run is not None:  # of a run that goes on
            self._config = MappingProxyType(self._session.run.config)
        if self._settings.flush_steps is not None:
            self._flush_every(self._settings.flush_steps)
        shutdown.watch(self)
        if self._settings.sigterm == "flush":
            shutdown.flush_at_sigterm()

    def _begin_idle(self) -> None:
        """The state of a bus that has no run yet."""
        super().__init__()
        self._session = None
        self._elsewhere: tuple[RunFolder, Run] | None = None  # the run of which this is a copy
        self._config = MappingProxyType({})
        self._settings = Settings()
        self._definitions = Definitions()
        self._phases: set[str] = set()
        self._ends = []

    # Definitions

    def define(
        self,
        pattern: str,
        *,
        every: int | None = None,
        reduce: Reducer | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        sinks: Sequence[str] | None = None,
        axis: str | None = None,
        across_ranks: AcrossRanks | None = None,
        progress: bool | None = None,
    ) -> None:
        """Says what becomes of the values of names that a glob matches; see docs/definitions.md.

        `every=n` emits one value for every n, at the step of the last one, by `reduce` (`last` if
        left out). `on_epoch` emits one at the end of each epoch, by `reduce` (`mean`), under the
        name with `_epoch` added if `on_step` is not False. `sinks` names those that get them,
        `axis` the series that is their x axis. `across_ranks` has `end_epoch()` and `sync()` reduce
        what all ranks have logged: mean (weighted), sum, min, max, count or std. `progress=True`
        shows the newest value beside the progress bars of `steps()` and `epochs()`. Later
        definitions win in what they say.

        Raises `ConfigError` for a definition that makes no sense.
        """
        if isinstance(sinks, str):
            sinks = [sinks]
        told = tuple(sinks) if sinks is not None else None
        rest = told, axis, across_ranks, progress
        self._define(Definition(pattern, every, reduce, on_step, on_epoch, *rest))

    def phase(self, name: str) -> Scope:
        """A scope with a default: what is logged in `train` is emitted on steps, in every other
        phase once an epoch, by the mean. Definitions win over the default, whenever they came.
        """
        scope = Scope(self, name)
        if name not in self._phases:
            self._phases.add(name)
            on_step = name == "train"
            default = Definition(f"{name}/*", on_step=on_step, on_epoch=not on_step)
            self._define(default, default=True)
        return scope

    def _define(self, definition: Definition, *, default: bool = False) -> None:
        checked(definition)
        if self._session is not None:
            self._session.define(definition, default=default)
        self._definitions.add(definition, default=default)

    def scope(self, prefix: str) -> Scope:
        """A view that puts `prefix/` before every name and shares everything else."""
        return Scope(self, prefix)

    # Steps and epochs

    @property
    def step(self) -> int:
        """The current step."""
        return self._clock.step

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._clock.epoch

    def steps(
        self, iterable: Iterable[T], advance: bool = True, *, progress: bool | None = None
    ) -> Steps[T]:
        """Iterates, moving the step when the next item is taken; the first one is the run's step.

        With `advance=False`, and inside another `steps()`, nothing is moved. A progress bar shows
        in a terminal or a notebook where tqdm is installed, or as `progress` says; with the metrics
        that `define(..., progress=True)` chose.

        Raises `MissingPackageError` if a bar is asked for and tqdm is not installed.
        """
        return Steps(self._clock, iterable, Progress(self, progress), advance=advance)

    def epochs(self, n: int, *, progress: bool | None = None) -> Epochs:
        """Yields the numbers of the next `n` epochs, ending each one after its turn.

        With a progress bar like that of `steps()`, which stands below it.
        """
        shown = Progress(self, progress)
        return Epochs(self._clock, n, self._begin_epoch, self._end_epoch, shown)

    def _bar_setting(self) -> Bars:
        return self._settings.progress

    def _will_log(self) -> bool:
        """Whether this bus does anything, or will when it is first logged to."""
        return self.is_on

    def advance(self, n: int = 1) -> None:
        """Moves the step by `n`: by one for a step, by the batch size to count examples.

        Raises `RuntimeError` where a `steps()` loop or `watch_optimizer` moves the step.
        """
        if (driver := self._clock.step_driver) is not None:
            raise both_drive("bus.advance()", driver)
        self._clock.advance(check_step(n, "n"))

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands (step, epoch, open reductions), for the training's checkpoint.

        It is made of dicts, lists, texts and numbers, so `torch.save`, JSON and the like take it.
        """
        from metricbus._bus.checkpoint import take

        return take(self._awake(), self._clock, self._settings.block_secs)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint: what earlier attempts logged beyond its step is superseded.

        Raises `ValueError` for what `state_dict` did not give.
        """
        from metricbus._bus.checkpoint import put_back

        put_back(state, self._awake(), self._clock, self._settings.block_secs)
        self._newest.clear()

    def rewind(self, step: int, epoch: int | None = None) -> None:
        """Goes back to an earlier step, which is over: the next loop begins with the one after it.

        Every row of the run so far whose step is greater is superseded: `metricbus.read` leaves it
        out, and each sink does what it can (docs/sinks.md).
        """
        from metricbus._bus.checkpoint import rewind

        rewind(step, epoch, self._awake(), self._clock, self._settings.block_secs)
        self._newest.clear()

    # What comes back

    def last(self, name: str) -> Number | None:
        """The newest value under a name, the newest reduced one if it is reduced; None if none.

        After going back, of what was logged since. Waits for a value that is still on a device.
        """
        rule = self._definitions.rule(name)
        if self._session is not None and (
            name not in self._newest or (rule and not rule.passthrough)
        ):
            return self._session.newest(name)
        value = self._newest.get(name)
        return value.number() if isinstance(value, Pending) else value

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that was given, read-only."""
        return self._config

    def stats(self) -> Report:
        """The counts as they are now, without waiting for anything."""
        if self._session is not None:
            return self._session.stats()
        return Report(dropped=self._dropped_asleep())

    # Ends

    def flush(self, timeout: float | None = None) -> Report:
        """Waits until all that was logged has reached every sink, at most `timeout` seconds.

        It always returns, with the counts. Under `strict=True` it raises `DeliveryError` instead
        when they are not complete.
        """
        if self._session is None:
            report = self.stats()
        else:
            report = self._session.flush(self._timeout(timeout))
        self._judge(report, "flush()")
        return report

    def close(self, status: Status = "finished", timeout: float | None = None) -> Report:
        """Ends the run with this status, at most `timeout` seconds after the call.

        A sink that is not done by then goes on in the background while the process lives; its
        `pending` says how much is left. Closing again returns the counts again.
        """
        if status not in ("finished", "failed", "killed"):
            raise ValueError(f'status must be "finished", "failed" or "killed", not {status!r}')
        if self._session is None:
            report = self.stats()
            self._judge(report, "close()")
            return report
        try:
            self._come_to_an_end()
            report = self._session.close(status, self._timeout(timeout))
        finally:  # who presses Ctrl-C here does not want to wait again at the end of the script
            shutdown.forget(self)
        self._judge(report, "close()")
        return report

    def before_close(self, end: Callable[[], object]) -> None:
        """Has `end` called when the run is closed, while it still takes what is logged.

        For what logs by itself: a thread that samples something, for one. Also at the end of the
        script, but not in copies of the bus.
        """
        self._ends.append(end)

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"<{kind} of {self._run_id()!r}>" if self._run_id() else f"<{kind} without a run>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from metricbus._history.history import read
        from metricbus._history.notebook_html import html_of_bus

        return html_of_bus(self, read)

    def __enter__(self) -> MetricBus:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(shutdown.status_after(error))
        except DeliveryError:
            pass  # the error from the block is the one to see

    def _timeout(self, timeout: float | None) -> float:
        secs = self._settings.close_timeout if timeout is None else float(timeout)
        return min(max(secs, 0.0), threading.TIMEOUT_MAX)

    def _judge(self, report: Report, what: str) -> None:
        if self._settings.strict and not report.complete:
            raise DeliveryError(f"{what}: not everything was delivered\n{report}", report)

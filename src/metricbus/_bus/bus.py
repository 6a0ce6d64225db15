"""`MetricBus`, the object that a training loop logs to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from metricbus._aggregate.reductions import AcrossRanks, Reducer
from metricbus._aggregate.rules import Definition, Definitions, check_definition
from metricbus._bus.epoch_sync import EpochSync
from metricbus._bus.loops import Epochs, Steps
from metricbus._bus.progress import ProgressBars
from metricbus._bus.scope import Scope
from metricbus._common.clock import check_step, step_driver_conflict
from metricbus._common.config import read_only_config
from metricbus._common.device_values import DeviceValue
from metricbus._common.records import Number
from metricbus._common.settings import (
    Fsync,
    Hosting,
    Overflow,
    ProgressMode,
    Settings,
    Unloggable,
    resolve_settings,
)
from metricbus.sinks import Sink

if TYPE_CHECKING:
    from metricbus._bus.session import Session

T = TypeVar("T")

_PHASES = {"train": "step", "val": "epoch"}
_RESUME: dict[object, str] = {True: "allow", False: "never"}


class MetricBus(EpochSync):
    """A run's metrics: log them once, send them to any number of backends.

    with MetricBus(run="digits", config={"lr": 3e-4}) as bus:
        for x, y in bus.steps(loader):
            bus.log("train/loss", train_step(x, y))

    `run` is a label and need not be unique. `id` is unique and names the run's folder under `dir`;
    if omitted, it is made from the label and the time. `config` is a mapping, an
    `argparse.Namespace`, or an instance of a dataclass, attrs or pydantic class; nested ones too.
    `sinks` is a string of sink URLs separated by commas, or a list of URLs and `Sink` objects.
    `resume=True` resumes the run with this `id` or, without an `id`, the only run with this label;
    if there is none, it creates one. `resume="must"` raises `ConfigError` instead of creating a
    run. The other arguments are settings. An omitted setting is read from the environment, or else
    takes its default; see docs/environment.md.

    Raises `ConfigError` or a subclass of it if the configuration cannot work, and `TypeError` for
    an argument of the wrong type. Once the bus is open, `log()` raises only for incorrect
    calls; a backend that fails never raises into the training loop.
    """

    _session: Session | None
    _config: Mapping[str, Any]

    def __init__(
        self,
        run: str | None = None,
        *,
        id: str | None = None,
        project: str | None = None,
        config: object = None,
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
        unloggable: Unloggable | None = None,
        block_secs: float | None = None,
        close_timeout: float | None = None,
        delivery: Hosting | None = None,
        linger_secs: float | None = None,
        fsync: Fsync | None = None,
        sigterm: Literal["default", "flush"] | None = None,
        ranks: int | Literal["all", "local0"] | None = None,
        sync_secs: float | None = None,
        progress: ProgressMode | None = None,
        strict: bool | None = None,
        disabled: bool | None = None,
    ) -> None:
        arguments = locals()  # must come first: the settings are picked from the arguments by name
        given = {name: arguments[name] for name in Settings.__struct_fields__ if name in arguments}
        self._init_without_run()
        if isinstance(tags, str):
            raise TypeError(f"tags= must be a list of strings, not a string; write tags=[{tags!r}]")
        self._config = read_only_config({} if config is None else config)
        given |= {
            "sinks": None,  # may contain objects; passed to `open_session` instead
            "dir": None if dir is None else os.fspath(dir),
            "resume": _RESUME.get(resume, resume),
            "ranks": None if ranks is None else str(ranks),
        }
        self._settings, _ = resolve_settings(given)
        if self._settings.disabled:
            self._switch_off()
            return
        # Imported here, because a bus that never opens a run should not pay for this import.
        from metricbus._bus.open_run import open_session

        fields = {"tags": list(tags), "group": group, "notes": notes}
        self._session = open_session(
            self._settings, sinks, id=id, name=run, config=self._config, **fields
        )
        self._queue = self._session.queue
        if config is None and self._session.run is not None:
            # A resumed or joined run has a config already.
            self._config = read_only_config(self._session.run.config)
        if self._settings.flush_steps is not None:
            self._flush_every(self._settings.flush_steps)
        self._register_for_shutdown()

    def _init_without_run(self) -> None:
        super().__init__()
        self._session = None
        self._copied_run = None
        self._config = read_only_config({})
        self._settings = Settings()
        self._definitions = Definitions()
        self._phases: dict[str, str] = {}
        self._close_hooks = []

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
        """Define how the values of all names that match a glob pattern are emitted.

        Without a definition, each value is emitted at its step.

        - `every=n` emits one value for every n logged values, at the step of the last one, reduced
          by `reduce` (default: `last`).
        - `on_epoch=True` emits one value at the end of each epoch, reduced by `reduce` (default:
          `mean`). Its name gets the suffix `_epoch`, unless `on_step=False`.
        - `on_step=False` emits no values at steps, only those at the end of each epoch.
        - `sinks` lists the sinks that receive the values (default: all).
        - `axis` names another series to use as the x axis.
        - `across_ranks` is how `end_epoch()` and `sync()` merge the values of all ranks: `mean`
          (weighted as in `log(weight=)`), `sum`, `min`, `max`, `count` or `std`.
        - `progress=True` shows the newest value next to the progress bars of `steps()` and
          `epochs()`.

        Later definitions override earlier ones, field by field. They apply to values logged from
        now on. See docs/definitions.md.

        Raises `ConfigError` if the arguments contradict each other or name an unknown sink.
        """
        sinks = [sinks] if isinstance(sinks, str) else sinks
        sink_names = None if sinks is None else tuple(sinks)
        options = every, reduce, on_step, on_epoch, sink_names, axis, across_ranks, progress
        self._define(Definition(pattern, *options))

    def phase(self, name: str, on: Literal["step", "epoch"] | None = None) -> Scope:
        """Return `scope(name)`, with a default definition of how its values are emitted.

        With `on="step"`, the default for the phase `train`, each value is emitted at its step. With
        `on="epoch"`, the default for the phase `val`, values are emitted once an epoch, as their
        mean. Other phases must pass `on`. Explicit definitions override this default, whether they
        were made before or after it.

        Raises `ValueError` if `on` is missing or unknown, or differs from an earlier call.
        """
        scope = Scope(self, name)
        chosen = on or self._phases.get(name) or _PHASES.get(name)
        if chosen not in ("step", "epoch") or self._phases.get(name, chosen) != chosen:
            raise ValueError(
                f'phase({name!r}) needs on="step", which emits each value, or on="epoch", which '
                f"emits one mean per epoch, the same in each call, not on={on!r}"
            )
        if name not in self._phases:
            self._phases[name] = chosen
            is_per_step = chosen == "step"
            default = Definition(f"{name}/*", on_step=is_per_step, on_epoch=not is_per_step)
            self._define(default, default=True)
        return scope

    def scope(self, prefix: str) -> Scope:
        """Return a view of this bus that adds `prefix/` to every name and shares all other state.

        Raises `ValueError` for an empty prefix.
        """
        return Scope(self, prefix)

    def _define(self, definition: Definition, *, default: bool = False) -> None:
        check_definition(definition)
        if self._session is not None:
            self._session.define(definition, default=default)
        self._definitions.add(definition, default=default)

    # Steps and epochs

    @property
    def step(self) -> int:
        """The current step. Steps count from 0."""
        return self._clock.step

    @property
    def epoch(self) -> int:
        """The current epoch. Epochs count from 0."""
        return self._clock.epoch

    def steps(
        self, iterable: Iterable[T], advance: bool = True, *, progress: bool | None = None
    ) -> Steps[T]:
        """Return an iterable over the same items that advances the step for each item.

        In a new run, the first item is step 0. Later loops continue with the next step. The
        step does not change if `advance=False`, or if the loop is inside another `steps()` loop.

        A progress bar is shown in a terminal or notebook if tqdm is installed. `progress=True`
        requests one and `progress=False` suppresses it. The bar shows the metrics for which
        `define(..., progress=True)` was called.

        Raises `TypeError` if `iterable` cannot be iterated over, and `MissingPackageError` if a bar
        was requested and tqdm is not installed. Iterating raises `RuntimeError` if
        `watch_optimizer(advance=True)` also advances the step.
        """
        return Steps(self._clock, iterable, ProgressBars(self, progress), advance=advance)

    def epochs(
        self, n: int | None = None, *, total: int | None = None, progress: bool | None = None
    ) -> Epochs:
        """Return an iterable over the numbers of the next `n` epochs, or of those up to `total`.

        In a resumed run, `n` more epochs follow, while `total` counts the epochs of all attempts.
        Each epoch ends after the loop body, as if by `end_epoch()`, and its duration in seconds is
        logged as `time/epoch`. A progress bar is shown under the same conditions as for `steps()`.

        Raises `TypeError` unless either `n` or `total` is given, and `MissingPackageError` if a bar
        was requested and tqdm is not installed. Iterating raises `RuntimeError` inside another
        `epochs()` loop.
        """
        if (n is None) == (total is None):
            raise TypeError("epochs() needs a number of epochs: epochs(n), or epochs(total=n)")
        if n is None:
            n = max(0, check_step(total, "total") - self._clock.next_epoch)
        bars = ProgressBars(self, progress)
        return Epochs(self._clock, n, self._begin_epoch, self._end_epoch, bars)

    def _progress_setting(self) -> ProgressMode:
        return self._settings.progress

    def _will_log(self) -> bool:
        """Check whether the bus is on, or will open at its first call."""
        return self.is_on

    def advance(self, n: int = 1) -> None:
        """Advance the step by `n`: by 1 to count steps, or by the batch size to count examples.

        Raises `RuntimeError` if a `steps()` loop or `watch_optimizer(advance=True)` already
        advances the step.
        """
        if (driver := self._clock.step_driver) is not None:
            raise step_driver_conflict("bus.advance()", driver)
        self._clock.advance(check_step(n, "n"))

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the epoch and the pending reductions, to store in a checkpoint.

        The state consists of dicts, lists, strings and numbers, so `torch.save`, JSON and the like
        can store it.
        """
        from metricbus._bus.checkpoint import save_state

        return save_state(self._joined_session(), self._clock, self._settings.block_secs)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that `state_dict()` returned.

        Rows that earlier attempts logged after this checkpoint are superseded: `metricbus.read`
        omits them, and each sink removes or marks them as far as it can (docs/sinks.md).

        Raises `ValueError` if `state` was not returned by `state_dict()`.
        """
        from metricbus._bus.checkpoint import load_state

        load_state(state, self._joined_session(), self._clock, self._settings.block_secs)
        self._newest.clear()

    def rewind(self, step: int, epoch: int | None = None) -> None:
        """Go back to a step, which counts as completed: the next loop starts at `step + 1`.

        All rows logged so far at a later step are superseded: `metricbus.read` omits them, and each
        sink removes or marks them as far as it can (docs/sinks.md). If `epoch` is omitted, the
        epoch stays the same.
        """
        from metricbus._bus.checkpoint import rewind

        rewind(step, epoch, self._joined_session(), self._clock, self._settings.block_secs)
        self._newest.clear()

    # Reading back

    def last(self, name: str) -> Number | None:
        """Return the newest value logged under a name, or None if there is none.

        For a name that is reduced, this is the newest reduced value. After a rewind, only values
        logged since then count. If the value is still on a device, the call waits for it.
        """
        rule = self._definitions.rule(name)
        if self._session is not None and (
            name not in self._newest or (rule and not rule.passthrough)
        ):
            return self._session.newest(name)
        value = self._newest.get(name)
        return value.number() if isinstance(value, DeviceValue) else value

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's config, read-only at every level."""
        return self._config

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"<{kind} of {self._run_id()!r}>" if self._run_id() else f"<{kind} without a run>"

    def _repr_html_(self) -> str:
        """Return the run's summary for a notebook."""
        from metricbus._history.notebook_html import bus_html

        return bus_html(self)

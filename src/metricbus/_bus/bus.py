"""`MetricBus`, the object that a training loop logs to.

Its methods are documented here and in `loops`. They work on its core, whose state they depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, SupportsIndex, Unpack, overload

from metricbus._aggregate.reductions import AcrossRanks, Reducer
from metricbus._aggregate.rules import Definition
from metricbus._bus import shutdown
from metricbus._bus.arguments import BusArguments, list_arguments
from metricbus._bus.core import BusCore
from metricbus._bus.live_run import RunConfig, check_tags
from metricbus._bus.loops import ClockMethods
from metricbus._bus.scope import Scope
from metricbus._common.device_values import DeviceValue
from metricbus._common.records import Best, Number, Status
from metricbus._common.settings import Unloggable
from metricbus._common.validation import check_name, to_number
from metricbus._delivery.report import DeliveryError, Report
from metricbus._ingest.recorder import MISSING, Recorder
from metricbus._journal.run import Run

_PHASES = {"train": "step", "val": "epoch"}


class MetricBus(ClockMethods):
    """A run's metrics: log them once, send them to any number of backends.

    with MetricBus(name="digits", config={"lr": 3e-4}) as bus:
        for x, y in bus.steps(loader):
            bus.log("train/loss", train_step(x, y))

    `name` is a label and need not be unique; `run` is an alias. `id` is unique and names the run's
    folder under `dir`; if omitted, it is made from the name and the time. `config` is a mapping, an
    `argparse.Namespace`, or an instance of a dataclass, attrs or pydantic class; nested ones too.
    `sinks` is a string of sink URLs separated by commas, or a list of URLs and `Sink` objects.
    `resume=True` resumes the run with this `id` or, without an `id`, the only run with this name;
    if there is none, it creates one. `resume="must"` raises `ConfigError` instead of creating a
    run. The other arguments are settings. An omitted setting is read from the environment, or else
    takes its default; see docs/environment.md.

    Raises `ConfigError` or a subclass of it if the configuration cannot work, and `TypeError` for
    an argument of the wrong type. Once the bus is open, `log()` raises only for incorrect
    calls; a backend that fails never raises into the training loop.
    """

    @list_arguments
    def __init__(self, name: str | None = None, **arguments: Unpack[BusArguments]) -> None:
        self._use(BusCore.open(name, arguments))

    def _use(self, core: BusCore) -> None:
        """Be the bus of this core from now on."""
        self._core, core.bus = core, self
        # In place of the method, which would cost another call for each value.
        self.log = core.log  # type: ignore[method-assign]

    @overload
    def log(
        self,
        name: str,
        value: Any,
        *,
        step: SupportsIndex | None = None,
        epoch: SupportsIndex | None = None,
        weight: float | None = None,
        unloggable: Unloggable | None = None,
    ) -> None: ...

    @overload
    def log(
        self,
        name: Mapping[str, Any],
        *,
        step: SupportsIndex | None = None,
        epoch: SupportsIndex | None = None,
        weight: float | None = None,
        unloggable: Unloggable | None = None,
    ) -> None: ...

    def log(self, name: str | Mapping[str, Any], value: Any = MISSING, **options: Any) -> None:
        """Log one value, or a mapping of names to values. Names of nested mappings join with `/`.

        A value is a number (see `metricbus._common.validation`), a medium such as a `Histogram` or
        an `Image`, or a torchmetrics object, which is computed and reset when the epoch ends.

        `step` and `epoch` default to the current ones of the bus; see docs/steps.md. `weight`, for
        example the batch size, is the weight of the values in means and standard deviations.
        `unloggable` overrides the setting of this name: `warn` and `ignore` leave out values that
        cannot be logged, such as text and None, instead of raising an error.

        Raises `TypeError` or `ValueError` for an invalid name, value, step, epoch or weight, before
        any value of the call is logged. Under `strict`, raises `ClosedError` after `close()`.
        """
        self._core.log(name, value, **options)

    Recorder.log.__doc__ = log.__doc__

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
        best: Best | None = None,
    ) -> None:
        """Define how the values of all names that match a glob pattern are emitted.

        Without a definition, each value is emitted at its step.

        - `every=n` emits one value for every n logged values, at the step of the last one, reduced
          by `reduce` (default: `last`).
        - `on_epoch=True` emits one value at the end of each epoch, reduced by `reduce` (default:
          `mean`). Its name gets the suffix `_epoch`, unless `on_step=False`.
        - `on_step=False` emits no values at steps, only those at the end of each epoch.
        - `sinks` lists the sinks that receive the values (default: all).
        - `axis` is the x axis in backends that have one: `"step"` (the default), `"epoch"`, or the
          name of another series.
        - `across_ranks` is how `end_epoch()` and `sync()` merge the values of all ranks: `mean`
          (weighted as in `log(weight=)`), `sum`, `min`, `max`, `count` or `std`.
        - `progress=True` shows the newest value next to the progress bars of `steps()` and
          `epochs()`.
        - `best="max"` or `"min"` keeps the largest or smallest emitted value of each name in the
          summary of the run, as `best/<name>`.

        Later definitions override earlier ones, field by field. They apply to values logged from
        now on. See docs/definitions.md.

        Raises `ConfigError` if the arguments contradict each other or name an unknown sink.
        """
        sinks = [sinks] if isinstance(sinks, str) else sinks
        sink_names = None if sinks is None else tuple(sinks)
        options = every, reduce, on_step, on_epoch, sink_names, axis, across_ranks, progress, best
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
        chosen = on or self._core.phases.get(name) or _PHASES.get(name)
        if chosen not in ("step", "epoch") or self._core.phases.get(name, chosen) != chosen:
            raise ValueError(
                f'phase({name!r}) needs on="step", which emits each value, or on="epoch", which '
                f"emits one mean per epoch, the same in each call, not on={on!r}"
            )
        if name not in self._core.phases:
            self._core.phases[name] = chosen
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
        self._core.define(definition, default=default)

    # Reading back

    def last(self, name: str) -> Number | None:
        """Return the newest value logged under a name, or None if there is none.

        For a name that is reduced, this is the newest reduced value. After a rewind, only values
        logged since then count. If the value is still on a device, the call waits for it.
        """
        core = self._core
        newest, rule = core.recorder.newest, core.definitions.rule(name)
        if core.session is not None and (name not in newest or (rule and not rule.passthrough)):
            return core.session.newest(name)
        value = newest.get(name)
        return value.number() if isinstance(value, DeviceValue) else value

    def stats(self) -> Report:
        """Return the current counts of logged, written and delivered values. Never waits."""
        return self._core.stats()

    # The run

    @property
    def run(self) -> Run | None:
        """The run's identity: id, name, config, status and so on. None if the bus has no run."""
        return self._core.run

    @property
    def dir(self) -> Path | None:
        """The run's own folder, which is in the folder given as `dir=` and named by the run's id.

        `metricbus.read` accepts it. None if the bus has no run.
        """
        return self._core.folder

    folder = dir
    """An alias of `dir`."""

    @property
    def is_on(self) -> bool:
        """Whether `log()` has any effect.

        Also True on a rank that does not write, because its values may be reduced across ranks.
        """
        return self._core.is_on

    @property
    def config(self) -> RunConfig:
        """The run's config. It is read-only, but `config.update()` merges values into it."""
        return self._core.config

    def add_tags(self, *tags: str) -> None:
        """Add tags to the run, after those that it has. A tag that it has already is left out.

        Raises `TypeError` or `ValueError` for a tag that is not text, or empty.
        """
        self._core.opened().update_run("tags", tags=check_tags(tags))

    def summarize(self, name: str, value: Any) -> None:
        """Set a final value of the run, such as a test accuracy, in place of an earlier one.

        `value` is a number as for `log()`; one on a device is waited for. The summary of the run is
        `bus.run.summary`; docs/sinks.md describes where each sink shows it.

        Raises `TypeError` or `ValueError` for an invalid name or value.
        """
        summary = {check_name(name): to_number(name, value)}
        self._core.opened().update_run("summary", summary=summary)

    def flush(self, timeout: float | None = None) -> Report:
        """Wait until every value logged so far has reached every sink.

        Waits at most `timeout` seconds (default: the setting `close_timeout`), then returns the
        counts, whether or not they are complete.

        Raises `DeliveryError` under `strict=True` if a value was dropped, rejected or not yet
        delivered.
        """
        core = self._core
        report = core.session.flush(core.clamp_timeout(timeout)) if core.session else core.stats()
        return core.check_complete(report, "flush()")

    def close(self, status: Status = "finished", timeout: float | None = None) -> Report:
        """End the run with a status (`finished`, `failed` or `killed`) and return the counts.

        Waits at most `timeout` seconds (default: the setting `close_timeout`) for the sinks. A
        sink that is not done by then continues in the background for as long as the process (or
        the delivery process) lives; `report.sinks[name].pending` is the number of its undelivered
        values.

        Closing again waits for the remaining values. The status of the first call is kept.

        Raises `ValueError` for an unknown status, and `DeliveryError` under `strict=True` if a
        value was dropped, rejected or not yet delivered.
        """
        if status not in ("finished", "failed", "killed"):
            raise ValueError(f'status must be "finished", "failed" or "killed", not {status!r}')
        core = self._core
        report = core.end(status, core.clamp_timeout(timeout)) if core.session else core.stats()
        return core.check_complete(report, "close()")

    def before_close(self, end: Callable[[], object]) -> None:
        """Register a function to call when the run is closed, while the bus still accepts values.

        Use it to stop a background thread that logs. The function is also called at the end of the
        script, but not in a copy of the bus in another process. If it raises, a warning is logged
        and the run is closed nevertheless.
        """
        self._core.close_hooks.append(end)

    def __enter__(self) -> Self:
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
        with suppress(DeliveryError):  # the exception from the block takes precedence
            self.close(shutdown.status_for_exception(error))

    # Copies and displays

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return the bus itself, so that a copied model that holds it logs to the same run."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the run: unpickling returns this bus in this process, and a copy in another."""
        return _unpickle, (type(self), self._core)

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"<{kind} of {self.run.id!r}>" if self.run else f"<{kind} without a run>"

    def _repr_html_(self) -> str:
        """Return the run's summary for a notebook."""
        from metricbus._history.notebook_html import bus_html

        return bus_html(self)


def _unpickle(bus_class: type[MetricBus], copy: BusCore) -> MetricBus:
    for core in shutdown.open_buses():
        if isinstance(core, BusCore) and copy.folder and core.folder == copy.folder:
            found: MetricBus = core.bus
            return found
    bus = bus_class.__new__(bus_class)
    bus._use(copy)
    return bus

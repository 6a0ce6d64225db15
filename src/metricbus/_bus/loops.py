"""What moves the clock of a bus: its loops, and the methods for steps, epochs and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from metricbus._bus.core import BusCore
from metricbus._bus.progress import ProgressBars
from metricbus._common.clock import STEPS_DRIVER, Clock, check_step, step_driver_conflict
from metricbus._common.records import Number

if TYPE_CHECKING:
    from metricbus._bus.session import Session

T = TypeVar("T")


class Steps(Generic[T]):
    """An iterable over the items of another one, which advances the step for each item.

    The step stays as it is with `advance=False`, and where an outer loop advances it. `phase` is
    the prefix of the scope that made the loop; empty for a loop of the bus itself.
    """

    phase = ""

    def __init__(
        self, clock: Clock, iterable: Iterable[T], bars: ProgressBars, *, advance: bool
    ) -> None:
        if not isinstance(iterable, Iterable) and not hasattr(iterable, "__getitem__"):
            raise TypeError(
                f"bus.steps() needs an iterable, not {iterable!r:.60}; "
                "to count, write bus.steps(range(n))"
            )
        self._clock = clock
        self._iterable = iterable
        self._advance = advance
        self._bars = bars

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # its own TypeError is the right one

    def __iter__(self) -> Iterator[T]:
        clock = self._clock
        if self._advance and clock.step_driver not in (None, STEPS_DRIVER):
            raise step_driver_conflict(STEPS_DRIVER, str(clock.step_driver))
        drives = self._advance and clock.step_driver is None
        if drives:
            clock.step_driver = STEPS_DRIVER
        clock.active_loops += 1
        try:
            with self._bars.wrap_steps(
                self._iterable, self, self._bar_label(), prefix=self._bar_prefix(), drives=drives
            ) as items:
                for item in items:
                    if drives:
                        clock.enter_step()
                    yield item
        finally:
            clock.active_loops -= 1
            if drives:
                clock.step_driver = None

    def _bar_label(self) -> str:
        """Return the text before the progress bar: the phase, or else the number of the epoch."""
        clock = self._clock
        if self.phase:
            return self.phase
        return f"epoch {clock.epoch}" if clock.epoch_driver or clock.epoch else ""

    def _bar_prefix(self) -> str:
        """Return the prefix of the metrics that the bar shows; a training loop shows them all."""
        return f"{self.phase}/" if self.phase and not self._advance else ""


class Epochs:
    """An iterable over the numbers of the next `n` epochs, which begins and ends each of them.

    `end` receives the duration of the epoch in seconds.
    """

    def __init__(
        self,
        clock: Clock,
        n: int,
        begin: Callable[[], object],
        end: Callable[[float], object],
        bars: ProgressBars,
    ) -> None:
        self._clock = clock
        self._n = check_step(n, "n")
        self._begin = begin
        self._end = end
        self._bars = bars

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[int]:
        clock = self._clock
        if clock.epoch_driver is not None:
            raise RuntimeError(
                f"{clock.epoch_driver} already moves the epoch; inside it, loop over "
                f"range({self._n})"
            )
        clock.epoch_driver = "bus.epochs()"
        try:
            with self._bars.wrap_epochs(self._n, self) as items:
                for _ in items:
                    clock.enter_epoch()
                    started = time.perf_counter()
                    self._begin()
                    yield clock.epoch
                    self._end(time.perf_counter() - started)
        finally:
            clock.epoch_driver = None


class ClockMethods:
    """The methods of `MetricBus` that read or move the current step and epoch."""

    _core: BusCore

    @property
    def step(self) -> int:
        """The current step. Steps count from 0."""
        return self._core.recorder.clock.step

    @property
    def epoch(self) -> int:
        """The current epoch. Epochs count from 0."""
        return self._core.recorder.clock.epoch

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
        return Steps(
            self._core.recorder.clock, iterable, ProgressBars(self, progress), advance=advance
        )

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
        clock = self._core.recorder.clock
        if n is None:
            n = max(0, check_step(total, "total") - clock.next_epoch)
        bars = ProgressBars(self, progress)
        return Epochs(clock, n, self._begin_epoch, self._end_epoch, bars)

    def advance(self, n: int = 1) -> None:
        """Advance the step by `n`: by 1 to count steps, or by the batch size to count examples.

        Raises `RuntimeError` if a `steps()` loop or `watch_optimizer(advance=True)` already
        advances the step.
        """
        clock = self._core.recorder.clock
        if clock.step_driver is not None:
            raise step_driver_conflict("bus.advance()", clock.step_driver)
        clock.advance(check_step(n, "n"))

    def end_epoch(self) -> dict[str, Number]:
        """End the epoch and return the values reduced over it, by name.

        Outside an `epochs()` loop, the next epoch starts at once. If a definition merges across
        ranks, or a torchmetrics object was logged, every rank must call this; see `sync()`, which
        also lists the errors.
        """
        results = self._end_epoch(None)
        if self._core.recorder.clock.epoch_driver is None:
            self._core.recorder.clock.leave_epoch()
        return results

    def sync(self, *, group: Any = None, timeout: float | None = None) -> dict[str, Number]:
        """Merge the values of all ranks logged since the last merge, and return them by name.

        Merges the names defined with `across_ranks=`. Without a `group`, also computes the logged
        torchmetrics objects over all ranks. Every rank of the torch.distributed `group` (default:
        all ranks) must call this, even if it logged nothing. All of them receive the results. The
        first rank that writes logs them, at the step of the last value.

        Raises `RankError`, naming the missing ranks, if a rank does not call this within `timeout`
        seconds (default: the setting `sync_secs`). The values are then kept for the next merge.
        """
        core = self._core
        return core.epoch_sync.merge(core.joined_session(), "bus.sync()", group, timeout)

    def _begin_epoch(self) -> None:
        core = self._core
        if (session := core.joined_session()) is not None:
            session.begin_epoch(core.recorder.clock.step, core.recorder.clock.epoch)

    def _end_epoch(self, seconds: float | None) -> dict[str, Number]:
        return self._core.epoch_sync.end_epoch(self._core.session, seconds)

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the epoch and the pending reductions, to store in a checkpoint.

        The state consists of dicts, lists, strings and numbers, so `torch.save`, JSON and the like
        can store it.
        """
        from metricbus._bus.checkpoint import save_state

        return save_state(*self._checkpoint_parts())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that `state_dict()` returned.

        Rows that earlier attempts logged after this checkpoint are superseded: `metricbus.read`
        omits them, and each sink removes or marks them as far as it can (docs/sinks.md).

        Raises `ValueError` if `state` was not returned by `state_dict()`.
        """
        from metricbus._bus.checkpoint import load_state

        load_state(state, *self._checkpoint_parts())
        self._core.recorder.newest.clear()

    def rewind(self, step: int, epoch: int | None = None) -> None:
        """Go back to a step, which counts as completed: the next loop starts at `step + 1`.

        All rows logged so far at a later step are superseded: `metricbus.read` omits them, and each
        sink removes or marks them as far as it can (docs/sinks.md). If `epoch` is omitted, the
        epoch stays the same.
        """
        from metricbus._bus.checkpoint import rewind

        rewind(step, epoch, *self._checkpoint_parts())
        self._core.recorder.newest.clear()

    def _checkpoint_parts(self) -> tuple[Session | None, Clock, float]:
        core = self._core
        return core.joined_session(), core.recorder.clock, core.settings.block_secs

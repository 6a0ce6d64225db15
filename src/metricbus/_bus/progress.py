"""Whether a loop has a progress bar, and what it looks like.

`progress=False` and the setting `off` are against it; `progress=True` and the setting `on` ask for
it, and need tqdm. If nothing is said, there is one where somebody looks and tqdm is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import NamedTuple, Protocol, TypeVar

from metricbus._bus.progress_postfix import Logged, Metrics
from metricbus._common.distributed import find_rank
from metricbus._common.settings import Bars
from metricbus._common.tqdm_logging import is_terminal, lock_of_bars
from metricbus.errors import MissingPackageError

T = TypeVar("T")


class _Shown(NamedTuple):
    """A bar that is there now."""

    bus: Logged
    is_of_epochs: bool
    metrics: Metrics


_shown: list[_Shown] = []


class Bus(Logged, Protocol):
    """What is asked of a bus."""

    def _bar_setting(self) -> Bars:
        """The setting `progress`."""

    def _will_log(self) -> bool:
        """Whether the bus does anything, or will when it is first logged to."""


class Progress:
    """The bars of one loop of a bus."""

    def __init__(self, bus: Bus, progress: bool | None) -> None:
        """Raises `MissingPackageError` if a bar is asked for and tqdm is not installed."""
        if not isinstance(progress, bool | None):
            raise TypeError(f"progress= takes True, False or None, not {progress!r:.40}")
        self._bus = bus
        self._progress = progress
        if self._is_asked_for() and find_spec("tqdm") is None:
            asked = "progress=True" if progress else "METRICBUS_PROGRESS=on"
            raise MissingPackageError(f"{asked} needs tqdm: pip install 'metricbus[cli]'")

    def over_epochs(self, n: int, loop: object) -> AbstractContextManager[Iterable[int]]:
        """The numbers below `n`, behind a bar if there is to be one for this `loop`."""
        if not self._is_shown(None, loop):
            return nullcontext(range(n))
        metrics = Metrics(self._bus, of_epochs=True, of_steps=True)
        shown = _Shown(self._bus, True, metrics)
        return _bar(range(n), shown, "epochs", "epoch")

    def over_steps(
        self, iterable: Iterable[T], loop: object, desc: str, *, below: str, drives: bool
    ) -> AbstractContextManager[Iterable[T]]:
        """The iterable, behind a bar if there is to be one for this `loop`.

        Its metrics are those `below` a prefix. Those of epochs stand beside the bar of epochs if
        there is one; steps within steps have only those of a prefix. `drives` says whether the loop
        moves the step.
        """
        if not self._is_shown(iterable, loop):
            return nullcontext(iterable)
        around = [one for one in _shown if one.bus is self._bus]
        epochs = [one for one in around if one.is_of_epochs]
        for one in epochs:
            one.metrics.of_steps = False
        of_steps = len(around) == len(epochs) or bool(below)
        metrics = Metrics(self._bus, of_epochs=not around, of_steps=of_steps, below=below)
        return _bar(iterable, _Shown(self._bus, False, metrics), desc, "step" if drives else "it")

    def _is_shown(self, iterable: object, loop: object) -> bool:
        if find_rank().number != 0 or getattr(sys.stderr, "closed", sys.stderr is None):
            return False
        return self._is_asked_for() or self._is_welcome(iterable, loop)

    def _is_asked_for(self) -> bool:
        if self._progress is False or not (self._progress or self._bus._will_log()):
            return False
        return self._bus._bar_setting() in (("auto", "on") if self._progress else ("on",))

    def _is_welcome(self, iterable: object, loop: object) -> bool:
        """Whether nobody has said anything, and somebody looks."""
        return (
            self._progress is None
            and self._bus._bar_setting() == "auto"
            and self._bus._will_log()
            and _somebody_looks()
            and find_spec("tqdm") is not None
            and not _has_a_bar(iterable, loop)
        )


@contextmanager
def _bar(iterable: Iterable[T], shown: _Shown, desc: str, unit: str) -> Iterator[Iterable[T]]:
    from metricbus._bus.tqdm_bar import bar_over  # imports tqdm

    _shown.append(shown)
    try:
        with bar_over(iterable, shown.metrics.text, desc=desc, unit=unit) as items:
            yield items
    finally:
        _shown.remove(shown)


def _somebody_looks() -> bool:
    """Whether there is a terminal, or a notebook."""
    find_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = find_shell() if find_shell is not None else None
    return getattr(shell, "kernel", None) is not None or is_terminal(sys.stderr)


def _has_a_bar(iterable: object, loop: object) -> bool:
    """Whether the user has put one there: tqdm(bus.steps(x)), or bus.steps(tqdm(x))."""
    std = sys.modules.get("tqdm.std")
    if std is None:
        return False
    with lock_of_bars(std):
        return isinstance(iterable, std.tqdm) or any(
            getattr(bar, "iterable", None) is loop for bar in std.tqdm._instances
        )

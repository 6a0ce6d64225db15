"""The decision whether a loop has a progress bar, and which metrics it shows.

`progress=False` and the setting `off` suppress the bar. `progress=True` and the setting `on`
request it, and need tqdm. Otherwise, a terminal or notebook has a bar if tqdm is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TypeVar

from metricbus._bus.progress_postfix import Postfix, ProgressSource
from metricbus._common.distributed import current_rank
from metricbus._common.optional_imports import check_installed
from metricbus._common.tqdm_logging import is_terminal
from metricbus._compat.tqdm import open_bars

T = TypeVar("T")


_active_bars: list[Postfix] = []


class ProgressBars:
    """The progress bars of one loop: one each time the loop is iterated over."""

    def __init__(self, bus: ProgressSource, progress: bool | None) -> None:
        """Raises `MissingPackageError` if a bar is requested and tqdm is not installed."""
        if not isinstance(progress, bool | None):
            raise TypeError(f"progress= must be True, False or None, not {progress!r:.40}")
        self._bus = bus
        self._progress = progress
        if self._is_requested():
            source = "progress=True" if progress else "METRICBUS_PROGRESS=on"
            check_installed("tqdm", source, "'metricbus[cli]'")

    def wrap_epochs(self, n: int, loop: object) -> AbstractContextManager[Iterable[int]]:
        """Return `range(n)`, with a progress bar if this `loop` should have one."""
        if not self._is_shown(None, loop):
            return nullcontext(range(n))
        postfix = Postfix(
            self._bus, counts_epochs=True, shows_epoch_values=True, shows_step_values=True
        )
        return _bar(range(n), postfix, "epochs", "epoch")

    def wrap_steps(
        self, iterable: Iterable[T], loop: object, desc: str, *, prefix: str, drives: bool
    ) -> AbstractContextManager[Iterable[T]]:
        """Return the iterable, with a progress bar if this `loop` should have one.

        The bar shows metrics whose names start with `prefix`. Values of epochs are left to the bar
        of an `epochs()` loop around this one. A `steps()` loop inside another shows metrics only if
        it has a prefix. `drives` is whether the loop advances the step.
        """
        if not self._is_shown(iterable, loop):
            return nullcontext(iterable)
        outer = [bar for bar in _active_bars if bar.bus is self._bus]
        epoch_bars = [bar for bar in outer if bar.counts_epochs]
        for bar in epoch_bars:
            bar.shows_step_values = False
        postfix = Postfix(
            self._bus,
            counts_epochs=False,
            shows_epoch_values=not outer,
            shows_step_values=len(outer) == len(epoch_bars) or bool(prefix),
            prefix=prefix,
        )
        return _bar(iterable, postfix, desc, "step" if drives else "it")

    def _is_shown(self, iterable: object, loop: object) -> bool:
        if current_rank().number != 0 or getattr(sys.stderr, "closed", sys.stderr is None):
            return False
        return self._is_requested() or self._is_shown_by_default(iterable, loop)

    def _is_requested(self) -> bool:
        if self._progress is False or not (self._progress or self._bus._core.will_log):
            return False
        return self._bus._core.progress in (("auto", "on") if self._progress else ("on",))

    def _is_shown_by_default(self, iterable: object, loop: object) -> bool:
        return (
            self._progress is None
            and self._bus._core.progress == "auto"
            and self._bus._core.will_log
            and _is_interactive()
            and find_spec("tqdm") is not None
            and not _has_tqdm_bar(iterable, loop)
        )


@contextmanager
def _bar(iterable: Iterable[T], postfix: Postfix, desc: str, unit: str) -> Iterator[Iterable[T]]:
    from metricbus._bus.tqdm_bar import wrap_in_bar  # imports tqdm

    _active_bars.append(postfix)
    try:
        with wrap_in_bar(iterable, postfix.text, desc=desc, unit=unit) as items:
            yield items
    finally:
        _active_bars.remove(postfix)


def _is_interactive() -> bool:
    """Check whether stderr is a terminal, or this is a notebook."""
    find_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = find_shell() if find_shell is not None else None
    return getattr(shell, "kernel", None) is not None or is_terminal(sys.stderr)


def _has_tqdm_bar(iterable: object, loop: object) -> bool:
    """Check for a bar of the user's own: `tqdm(bus.steps(x))`, or `bus.steps(tqdm(x))`."""
    if isinstance(iterable, getattr(sys.modules.get("tqdm"), "tqdm", ())):
        return True
    return any(getattr(bar, "iterable", None) is loop for bar in open_bars())

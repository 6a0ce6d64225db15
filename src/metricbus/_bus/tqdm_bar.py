"""The progress bar, by tqdm. Only who shows one imports this module."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Generic, TypeVar

from metricbus._common.tqdm_logging import (
    ConsoleHandlers,
    is_terminal,
    lock_of_bars,
    renew_lock_in_child,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook without ipywidgets, bars are text; that is all
    # Not tqdm.auto: it takes an iterator of its own, and a DataLoader would start its workers twice
    from tqdm.autonotebook import tqdm

T = TypeVar("T")

_FORMATS = (  # and how many columns each wants beside the description and the metrics
    (None, 52),  # tqdm's own
    ("{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]", 38),
    ("{desc}: {percentage:.0f}% {n_fmt}/{total_fmt}{postfix}", 0),
)
_FORMATS_WITHOUT_TOTAL = ((None, 34), ("{desc}: {n_fmt}{unit}{postfix}", 0))
_ERASE_LINE = "\r\x1b[K"

_open: dict[int, Bar] = {}  # by identity: to tqdm, two bars at the same place are equal
_console = ConsoleHandlers()


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """One bar, with the text that `beside` gives at its end, asked for whenever it is drawn.

    `beside` is told whether it is for the last time. Only the outermost bar stays on the terminal
    when it is done. Where it gets narrow, the rate goes first, then the bar itself; the metrics
    stay. tqdm's monitor, a thread that looks after bars which skip steps to save time, is not
    needed: this one looks at the clock at each step.
    """

    disable = True  # until it is made; Ctrl-C while that goes on has one closed that is not whole
    monitor_interval = 0
    _lock = lock_of_bars(sys.modules["tqdm.std"])

    def __init__(self, iterable: object, beside: Callable[[bool], str], **looks: Any) -> None:
        self._beside = beside
        self._text = ""
        self._form = (0, 0)  # how narrow the format is, and for how many columns that is so
        self._thread = threading.get_ident()
        self._is_terminal = is_terminal(sys.stderr)
        super().__init__(iterable, miniters=1, dynamic_ncols=self._is_terminal, **looks)
        self.leave = self.pos == 0

    @property
    def format_dict(self) -> Any:
        """What tqdm draws the bar from."""
        if threading.get_ident() == self._thread:  # others draw it again after a line of log
            self._text = self._beside(bool(self.disable))
        found = super().format_dict
        found["postfix"] = self._text
        if found.get("ncols") and not self.gui and not self.bar_format:
            found["bar_format"] = self._format_for(found["ncols"])
        return found

    def _format_for(self, columns: int) -> str | None:
        """The widest format that has had room so far, in as many columns."""
        narrow, at = self._form
        formats = _FORMATS if self.total else _FORMATS_WITHOUT_TOTAL
        room = columns - len(self.desc) - len(self._text)
        fits = next(place for place, (_, wants) in enumerate(formats) if room >= wants or not wants)
        narrow = max(narrow, fits) if at == columns else fits
        self._form = (narrow, columns)
        chosen = formats[narrow][0]
        return chosen if self.desc or chosen is None else chosen.removeprefix("{desc}: ")

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool:
        """Draws the bar. A terminal that is gone takes the bar along, and not the training.

        The lock is let go whatever happens, Ctrl-C while the bar is drawn included.
        """
        try:
            if nolock:
                return bool(super().refresh(nolock=True))
            with self._lock:
                return bool(super().refresh(nolock=True))
        except (OSError, ValueError):  # the latter where it was closed
            self.disable = True
            return False

    def close(self) -> None:
        """Draws it for the last time, or takes it away."""
        if self.disable or not hasattr(self, "pos"):
            return
        with suppress(OSError, ValueError):
            if self._is_terminal and not self.gui and self.pos == 0:
                self.fp.write(_ERASE_LINE)  # what Ctrl-C echoes may have moved the cursor
            super().close()


class _Items(Generic[T]):
    """An iterable that hides everything else, so that tqdm does not ask for its length."""

    def __init__(self, iterable: Iterable[T]) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[T]:
        return iter(self._iterable)


@contextmanager
def bar_over(
    iterable: Iterable[T], beside: Callable[[bool], str], **looks: Any
) -> Iterator[Iterable[T]]:
    """The iterable behind a bar, which is closed in the end, whatever that is."""
    bar = Bar(_Items(iterable), beside, total=_length_of(iterable), **looks)
    try:
        if not bar.disable and not bar.gui:
            _open[id(bar)] = bar
            _console.wrap()
        with closing(bar), closing(iter(bar)) as items:
            yield items
    finally:
        _open.pop(id(bar), None)
        if not _open:
            _console.unwrap()


def _length_of(iterable: object) -> int | None:
    """How many items there will be, if it can tell; what goes wrong in that is no matter here."""
    try:
        return len(iterable)  # type: ignore[arg-type]
    except Exception:
        return None


def _forget_in_child() -> None:
    """What a fork does: the terminal's bars are the parent's."""
    renew_lock_in_child()
    Bar._lock = lock_of_bars(sys.modules["tqdm.std"])
    for bar in _open.values():
        bar.disable = True
        tqdm._instances.discard(bar)
    _open.clear()
    _console.unwrap()


os.register_at_fork(after_in_child=_forget_in_child)

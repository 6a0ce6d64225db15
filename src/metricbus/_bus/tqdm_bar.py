"""The progress bar, based on tqdm. Imported only when a bar is shown."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Generic, TypeVar

from metricbus._common.tqdm_logging import ConsoleHandlers, is_terminal
from metricbus._compat.degrade import degrading
from metricbus._compat.tqdm import bar_lock, forget_in_child

with warnings.catch_warnings():
    # In a notebook without ipywidgets, tqdm warns, and shows bars as text. That is good enough.
    warnings.simplefilter("ignore")
    # Not tqdm.auto: it calls iter() as well, and a DataLoader would start its workers twice.
    from tqdm.autonotebook import tqdm

T = TypeVar("T")

_TQDM = ("tqdm", "the class tqdm", "there is no progress bar")

# Pairs of a tqdm format (None is tqdm's default) and the number of columns that it needs in
# addition to the description and the metrics.
_FORMATS = (
    (None, 52),
    ("{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]", 38),
    ("{desc}: {percentage:.0f}% {n_fmt}/{total_fmt}{postfix}", 0),
)
_FORMATS_WITHOUT_TOTAL = ((None, 34), ("{desc}: {n_fmt}{unit}{postfix}", 0))
_ERASE_LINE = "\r\x1b[K"

_open_bars: dict[int, Bar] = {}  # by id(): tqdm considers two bars at the same position equal
_console = ConsoleHandlers()


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """One progress bar, which calls `postfix` for the text at its end each time it is drawn.

    `postfix` receives whether the bar is drawn for the last time. Only the outermost bar stays on
    the terminal when it is finished. If the terminal is narrow, the bar omits the rate first, then
    the graphical bar; the metrics stay. tqdm's monitor thread is not needed: it watches bars that
    skip updates to save time, and this bar checks the clock at each step.
    """

    disable = True  # until __init__ is finished: Ctrl-C may close an incomplete bar
    monitor_interval = 0

    def __init__(self, iterable: object, postfix: Callable[[bool], str], **options: Any) -> None:
        self._postfix = postfix
        self._text = ""
        self._chosen_format = (0, 0)  # index of the format, and the terminal's columns at the time
        self._thread = threading.get_ident()
        self._is_terminal = is_terminal(sys.stderr)
        super().__init__(iterable, miniters=1, dynamic_ncols=self._is_terminal, **options)
        self.leave = self.pos == 0

    @property
    def format_dict(self) -> Any:
        """The values that tqdm formats the bar with."""
        # Other threads redraw the bar after a log line. They reuse the last text.
        if threading.get_ident() == self._thread:
            self._text = self._postfix(bool(self.disable))
        values = super().format_dict
        values["postfix"] = self._text
        if values.get("ncols") and not self.gui and not self.bar_format:
            values["bar_format"] = self._format_for(values["ncols"])
        return values

    def _format_for(self, columns: int) -> str | None:
        """Return the widest format that has fitted so far in this number of columns."""
        index, chosen_for = self._chosen_format
        formats = _FORMATS if self.total else _FORMATS_WITHOUT_TOTAL
        room = columns - len(self.desc) - len(self._text)
        fitting = next(i for i, (_, needed) in enumerate(formats) if room >= needed or not needed)
        index = max(index, fitting) if chosen_for == columns else fitting
        self._chosen_format = (index, columns)
        bar_format = formats[index][0]
        if self.desc or bar_format is None:
            return bar_format
        return bar_format.removeprefix("{desc}: ")

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool:
        """Draw the bar. If the terminal is gone, disable the bar and let the training continue.

        The lock is released in any case, also if Ctrl-C interrupts the drawing.
        """
        with degrading(*_TQDM), suppress(OSError, ValueError):  # ValueError: the stream is closed
            if nolock:
                return bool(super().refresh(nolock=True))
            with self.get_lock():
                return bool(super().refresh(nolock=True))
        self.disable = True
        return False

    def close(self) -> None:
        """Draw the outermost bar for the last time, or remove an inner one."""
        if self.disable or not hasattr(self, "pos"):
            return
        with degrading(*_TQDM), suppress(OSError, ValueError):
            if self._is_terminal and not self.gui and self.pos == 0:
                self.fp.write(_ERASE_LINE)  # the echo of Ctrl-C may have moved the cursor
            super().close()


Bar.set_lock(bar_lock())


class _Items(Generic[T]):
    """A wrapper that hides everything but iteration, so that tqdm does not call `len()`."""

    def __init__(self, iterable: Iterable[T]) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[T]:
        return iter(self._iterable)


@contextmanager
def wrap_in_bar(
    iterable: Iterable[T], postfix: Callable[[bool], str], **options: Any
) -> Iterator[Iterable[T]]:
    """Provide the iterable with a progress bar, which is closed in any case."""
    bar: Bar | None = None
    with degrading(*_TQDM):
        bar = Bar(_Items(iterable), postfix, total=_length(iterable), **options)
    if bar is None:
        yield iterable
        return
    try:
        if not bar.disable and not bar.gui:
            _open_bars[id(bar)] = bar
            _console.wrap()
        with closing(bar), closing(iter(bar)) as items:
            yield items
    finally:
        _open_bars.pop(id(bar), None)
        if not _open_bars:
            _console.unwrap()


def _length(iterable: object) -> int | None:
    """Return the number of items, or None if it is unknown. Any error counts as unknown."""
    try:
        return len(iterable)  # type: ignore[arg-type]
    except Exception:
        return None


def _forget_bars_in_child() -> None:
    """After a fork, leave the bars on the terminal to the parent."""
    forget_in_child(_open_bars.values())
    Bar.set_lock(bar_lock())
    for bar in _open_bars.values():
        bar.disable = True
    _open_bars.clear()
    _console.unwrap()


os.register_at_fork(after_in_child=_forget_bars_in_child)

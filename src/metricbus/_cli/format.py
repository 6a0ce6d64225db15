"""How the commands put numbers, times, media and courses into few characters."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from metricbus._cli.console import console
from metricbus._cli.escaping import printable
from metricbus._common.media_records import (
    AudioRecord,
    ChartRecord,
    FileRecord,
    HistogramRecord,
    ImageRecord,
    MediumRecord,
    TableRecord,
    TextRecord,
    VideoRecord,
)

ABSENT = "-"
STATUS_STYLES = {
    "running": "cyan",
    "silent": "yellow",
    "finished": "green",
    "failed": "red",
    "killed": "red",
    "unreadable": "red",
}

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-:=+*#"
_UNITS = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0))
_A_MOMENT = 0.5  # seconds for which nobody wants a bar


def number(value: float | None, digits: int = 5) -> str:
    """A value with so many significant digits; an integer in full, as far as it is short."""
    if value is None:
        return ABSENT
    if isinstance(value, int) and abs(value) < 10**9:
        return str(value)
    return f"{value:.{digits}g}"


def span(seconds: float) -> str:
    """A time in its largest unit: `45 s`, `12 min`, `3.4 h`, `8 d`."""
    for unit, length in _UNITS:
        if seconds >= length:
            many = seconds / length
            return f"{many:.1f} {unit}" if many < 10 and unit != "min" else f"{many:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def moment(nanoseconds: int) -> str:
    """The local date and time of nanoseconds since 1970-01-01 UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))


def size(count: int) -> str:
    """Bytes in a unit that suits."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"


def sparkline(low: NDArray[np.float64], high: NDArray[np.float64], width: int) -> str:
    """The course of a series in at most `width` characters.

    Each shows the extreme of its part that is farther from the middle of all, so that no peak
    is smoothed away; a part without finite values is a gap.
    """
    if not len(low) or np.isnan(low).all():
        return ""
    low, high = low / 4, high / 4  # so that no difference leaves float64
    cells = min(width, len(low))
    starts = np.arange(cells) * len(low) // cells
    least, greatest = np.fmin.reduceat(low, starts), np.fmax.reduceat(high, starts)
    middle = float(np.nanmedian(low + high) / 2)
    shown = np.where(greatest - middle >= middle - least, greatest, least)
    bottom, top = float(np.nanmin(shown)), float(np.nanmax(shown))
    bars = _bars()
    if bottom == top:
        return "".join(" " if np.isnan(value) else bars[3] for value in shown)
    places = (shown - bottom) / (top - bottom) * (len(bars) - 1)
    return "".join(" " if np.isnan(place) else bars[round(place)] for place in places.tolist())


def _bars() -> str:
    try:
        _BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return _ASCII_BARS
    return _BARS


def about(record: MediumRecord) -> str:
    """What a medium is, in a few words."""
    match record:
        case HistogramRecord():
            return f"{record.count:,} values, {number(record.minimum)} to {number(record.maximum)}"
        case ImageRecord() | VideoRecord():
            frames = f"{record.frames} frames of " if isinstance(record, VideoRecord) else ""
            return _with_caption(f"{frames}{record.width}x{record.height}", record.caption)
        case AudioRecord():
            seconds = f"{record.frames / record.sample_rate:.1f} s" if record.sample_rate else "?"
            return _with_caption(seconds, record.caption)
        case TableRecord():
            return "columns " + ", ".join(record.columns)
        case TextRecord():
            return record.start
        case ChartRecord():
            return record.title
        case FileRecord():
            return f"{record.origin}, {size(record.file.size)}"
    return ""


def _with_caption(text: str, caption: str) -> str:
    return f"{text}, {caption}" if caption else text


@contextmanager
def reading(what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that is to be told how much is done, and of how much.

    Where somebody looks, and it takes longer than a moment, there is a bar.
    """
    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=out, transient=True)
    task = progress.add_task(printable(what), total=None)
    began = time.monotonic()
    is_shown = False

    def tell(done: int, total: int) -> None:
        nonlocal is_shown
        progress.update(task, completed=done, total=total)
        if not is_shown and out.is_terminal and time.monotonic() - began > _A_MOMENT:
            is_shown = True
            progress.start()

    try:
        yield tell
    finally:
        if is_shown:
            progress.stop()

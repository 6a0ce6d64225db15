"""Short text forms of numbers, times, series and media, and progress bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from metricbus._cli.console import console
from metricbus._common import media_records as media
from metricbus._journal.segment_reader import OnProgress
from metricbus.sinks.media_text import caption_of, printable

NO_VALUE = "-"
STATUS_STYLES = {
    "running": "cyan",
    "silent": "yellow",
    "finished": "green",
    "failed": "red",
    "killed": "red",
    "unreadable": "red",
}

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-:=+*#"
_TIME_UNITS = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0))
# Operations that finish sooner show no progress bar.
_PROGRESS_DELAY_SECS = 0.5


def format_number(value: float | None, digits: int = 5) -> str:
    """Return a value with `digits` significant digits; integers below 10**9 in full."""
    if value is None:
        return NO_VALUE
    if isinstance(value, int) and abs(value) < 10**9:
        return str(value)
    return f"{value:.{digits}g}"


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit: `45 s`, `12 min`, `3.4 h`, `8.1 d`."""
    for unit, length in _TIME_UNITS:
        if seconds >= length:
            count = seconds / length
            return f"{count:.1f} {unit}" if count < 10 and unit != "min" else f"{count:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def format_time(nanoseconds: int) -> str:
    """Return the local date and time of nanoseconds since 1970-01-01 UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))


def format_size(count: int) -> str:
    """Return a number of bytes with a decimal unit."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"


def sparkline(extremes: Sequence[tuple[float, float] | None], width: int) -> str:
    """Return a series as at most `width` block characters.

    `extremes` has the lowest and the highest value of consecutive parts of the series, and None for
    parts without finite values, which are blank. Each character shows the extreme that is farther
    from the median of the series, so that no peak is smoothed away.
    """
    known = [pair for pair in extremes if pair is not None]
    if not known:
        return ""
    middle = median(low / 2 + high / 2 for low, high in known)
    cells = min(width, len(extremes))
    edges = [index * len(extremes) // cells for index in range(cells + 1)]
    shown = [_farthest(extremes[start:end], middle) for start, end in pairwise(edges)]
    levels = [value for value in shown if value is not None]
    bottom, top = min(levels), max(levels)
    blocks = _blocks()
    # Differences of the largest float64 values would overflow.
    height = top / 2 - bottom / 2
    return "".join(
        " "
        if value is None
        else blocks[round((value / 2 - bottom / 2) / height * (len(blocks) - 1)) if height else 3]
        for value in shown
    )


def _farthest(extremes: Sequence[tuple[float, float] | None], middle: float) -> float | None:
    low = min((pair[0] for pair in extremes if pair is not None), default=None)
    high = max((pair[1] for pair in extremes if pair is not None), default=None)
    if low is None or high is None:
        return None
    return high if high / 2 - middle / 2 >= middle / 2 - low / 2 else low


def _blocks() -> str:
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return _ASCII_BLOCKS
    return _BLOCKS


def describe_medium(record: media.MediumRecord) -> str:
    """Return a short description of a medium."""
    caption = f", {caption_of(record)}" if caption_of(record) else ""
    match record:
        case media.HistogramRecord():
            low, high = format_number(record.minimum), format_number(record.maximum)
            return f"{record.count:,} values, {low} to {high}"
        case media.ImageRecord() | media.VideoRecord():
            frames = f"{record.frames} frames of " if isinstance(record, media.VideoRecord) else ""
            return f"{frames}{record.width}x{record.height}{caption}"
        case media.AudioRecord():
            seconds = f"{record.frames / record.sample_rate:.1f} s" if record.sample_rate else "?"
            return seconds + caption
        case media.TableRecord():
            return "columns " + ", ".join(record.columns)
        case media.TextRecord():
            return record.start
        case media.ChartRecord():
            return record.title
        case media.FileRecord():
            return f"{record.origin}, {format_size(record.file.size)}"
    return ""


@contextmanager
def progress_bar(description: str, *, is_hidden: bool = False) -> Iterator[OnProgress]:
    """Yield a function to call with the amount done and the total.

    A bar is shown once the operation has taken half a second, if standard error is a terminal, and
    unless `is_hidden` is set.
    """
    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=out, transient=True)
    task = progress.add_task(printable(description), total=None)
    start = time.monotonic()
    is_shown, may_be_shown = False, out.is_terminal and not is_hidden

    def update(done: int, total: int) -> None:
        nonlocal is_shown
        progress.update(task, completed=done, total=total)
        if not is_shown and may_be_shown and time.monotonic() - start > _PROGRESS_DELAY_SECS:
            is_shown = True
            progress.start()

    try:
        yield update
    finally:
        if is_shown:
            progress.stop()

"""The command `metricbus tail`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from metricbus._cli.console import fail, failing
from metricbus._cli.escaping import json_text
from metricbus._cli.run_lookup import find_run
from metricbus._common.media_records import MediumRecord
from metricbus._common.records import encode
from metricbus._history.last_rows import TailRecord, last_rows, select_record
from metricbus._history.name_filter import NameFilter
from metricbus._journal.recovery import endings
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import JournalReader
from metricbus.errors import MediaError
from metricbus.sinks.logging.media import MediaLines
from metricbus.sinks.logging.sink import line_of, printable
from metricbus.sinks.media_text import kind_of

_LOOK_EVERY = 0.2


def tail(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run: its folder, id or name.")],
    name: Annotated[
        list[str] | None, typer.Option(help="Series to show, as 'train/*'; several times for more.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many rows.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until the run ends.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print rows as they are in the journal: JSON lines.")
    ] = False,
) -> None:
    """Print the last rows of a run, and those that come.

    Example: metricbus tail runs/digits-20260131-142530-k3x9a --name 'train/*' --follow
    """
    folder = find_run(run)
    wanted = NameFilter(name or ())
    show = _json_line if json else _Lines(folder)
    with failing(folder.path):
        rows, positions = last_rows(folder.journal, lines, wanted)
        _print(rows, show)
        if follow:
            _print(_coming(folder, JournalReader(folder.journal, positions), wanted), show)
        elif name and lines and not wanted.matched_names():
            fail(wanted.no_match_message())
        elif lines and not rows:
            print(f"metricbus: the run in {folder.path} has no rows yet", file=sys.stderr)


def _coming(folder: RunFolder, reader: JournalReader, wanted: NameFilter) -> Iterator[TailRecord | None]:
    """Rows as they come, until the run has ended; None whenever there is none for now."""
    while True:
        over = _is_over(folder)  # before reading: what was written until then is read
        for row in reader.read():
            found = select_record(row.record, wanted)
            if found is not None:
                yield found
        if over:
            return
        yield None
        time.sleep(_LOOK_EVERY)


def _is_over(folder: RunFolder) -> bool:
    """Whether nobody writes to the run any more: it has ended, or its processes have died.

    Whether those of another machine live cannot be known; there the run's own word counts.
    """
    run = folder.load()
    if run.status == "running" and run.process.is_alive():
        return False
    segments = endings(folder.journal).values()
    return not any(ending.is_open and ending.writer.is_here for ending in segments)


def _print(rows: Iterable[TailRecord | None], show: Callable[[TailRecord], str]) -> None:
    """Prints a line for each; what was printed is seen before it waits for more."""
    for row in rows:
        if row is None:
            sys.stdout.flush()
        else:
            sys.stdout.write(show(row) + "\n")
    sys.stdout.flush()


def _json_line(row: TailRecord) -> str:
    return json_text(encode([row])).rstrip("\n")  # type: ignore[list-item]  # media: a closed set


class _Lines:
    """Rows as people read them, with the time of day."""

    def __init__(self, folder: RunFolder) -> None:
        self._media = MediaLines(folder.path, printable)

    def __call__(self, row: TailRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(row.time // 10**9))
        return f"{clock} {self._medium(row) if isinstance(row, MediumRecord) else line_of(row)}"

    def _medium(self, record: MediumRecord) -> str:
        try:
            return self._media.line(record)
        except (MediaError, OSError) as error:
            start = f"step {record.step} epoch {record.epoch} | {printable(record.name)}"
            return f"{start}: {kind_of(record)}, {error}"

"""The command `metricbus tail`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from metricbus._cli.console import fail, report_errors
from metricbus._cli.escaping import escape_json
from metricbus._cli.run_lookup import find_run
from metricbus._common.media_records import MediumRecord
from metricbus._common.records import encode
from metricbus._history.last_rows import TailRecord, last_rows, select_record
from metricbus._history.name_filter import NameFilter
from metricbus._journal.crash_recovery import segment_states
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import JournalReader
from metricbus.errors import MediaError
from metricbus.sinks.logging.media import MediaLines
from metricbus.sinks.logging.sink import line_of
from metricbus.sinks.media_text import kind_of, quote_name

_POLL_SECS = 0.2


def tail(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run: its folder, id or name.")],
    name: Annotated[
        list[str] | None,
        typer.Option(help="Only series matching this name or glob, such as 'train/*'. Repeatable."),
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many rows.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new rows until the run ends.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the rows' journal records, as JSON lines.")
    ] = False,
) -> None:
    """Print the last rows of a run, and optionally new ones as they are logged.

    Example: metricbus tail runs/digits-20260131-142530-k3x9a --name 'train/*' --follow
    """
    folder = find_run(run)
    names = NameFilter(name or ())
    to_line = _json_line if json else _LineFormatter(folder)
    with report_errors(folder.path):
        rows, positions = last_rows(folder.journal, lines, names)
        _print_rows(rows, to_line)
        if follow:
            _print_rows(_new_rows(folder, JournalReader(folder.journal, positions), names), to_line)
        elif name and lines and not names.matched_names():
            fail(names.no_match_message())
        elif lines and not rows:
            print(f"metricbus: The run in {folder.path} has no rows yet.", file=sys.stderr)


def _new_rows(
    folder: RunFolder, reader: JournalReader, names: NameFilter
) -> Iterator[TailRecord | None]:
    """Yield rows as they are written until the run ends; None after all available rows."""
    while True:
        # Checked before reading, so that everything written before the end is read.
        has_ended = _has_ended(folder)
        for row in reader.read():
            selected = select_record(row.record, names)
            if selected is not None:
                yield selected
        if has_ended:
            return
        yield None
        time.sleep(_POLL_SECS)


def _has_ended(folder: RunFolder) -> bool:
    """Check whether the run has ended and no process on this host still writes to it.

    Processes on other hosts cannot be checked; for them the status in run.json counts.
    """
    run = folder.load()
    if run.status == "running" and run.process.is_alive():
        return False
    states = segment_states(folder.journal).values()
    return not any(state.is_open and state.writer.is_local for state in states)


def _print_rows(rows: Iterable[TailRecord | None], to_line: Callable[[TailRecord], str]) -> None:
    """Print a line for each row; None flushes standard output."""
    for row in rows:
        if row is None:
            sys.stdout.flush()
        else:
            sys.stdout.write(to_line(row) + "\n")
    sys.stdout.flush()


def _json_line(row: TailRecord) -> str:
    return escape_json(encode([row])).rstrip("\n")  # type: ignore[list-item]  # any media record


class _LineFormatter:
    """Formats rows like the `logging` sink, with the time of day."""

    def __init__(self, folder: RunFolder) -> None:
        self._media = MediaLines(folder.path)

    def __call__(self, row: TailRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(row.time // 10**9))
        line = self._medium_line(row) if isinstance(row, MediumRecord) else line_of(row)
        return f"{clock} {line}"

    def _medium_line(self, record: MediumRecord) -> str:
        try:
            return self._media.line(record)
        except (MediaError, OSError) as error:
            start = f"step {record.step} epoch {record.epoch} | {quote_name(record.name)}"
            return f"{start}: {kind_of(record)}, {error}"

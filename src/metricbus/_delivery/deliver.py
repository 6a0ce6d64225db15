"""Delivers the journal of an existing run, be it live, finished or killed, to any sinks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from metricbus._common.records import Header, Rewind, count_values
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.report import SinkCounts
from metricbus._delivery.sink_specs import OBJECT_PREFIX, specs_of
from metricbus._delivery.thread_host import ThreadHost
from metricbus._journal.crash_recovery import mark_dead_run, partial_rows, segment_states
from metricbus._journal.rewind import Rewinds
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import JournalReader, Row
from metricbus.errors import ConfigError
from metricbus.sinks import Sink, find_sink

_POLL_SECS = 0.2
_MASK = "***"


def deliver(
    folder: str | os.PathLike[str],
    sinks: str | Sequence[str | Sink] | None = None,
    *,
    follow: bool = False,
    timeout: float | None = None,
) -> dict[str, SinkCounts]:
    """Deliver what a run has logged to sinks, and return the counts of each sink by its name.

    Values that a sink already has are not delivered again. A run whose process has died is marked
    as killed.

    * `folder`: the run folder.
    * `sinks`: as for `MetricBus`. By default, the sinks that the run was configured with, except
      those that only work in the training process.
    * `follow`: for a live run, deliver until it ends, instead of only what has been logged so far.
    * `timeout`: give up after this many seconds; `pending` counts the values that are left.

    Raises `JournalError` if the folder contains no run, or one of a newer format, and `ConfigError`
    for invalid sinks.
    """
    run_folder = RunFolder(Path(folder))
    run = mark_dead_run(run_folder)
    specs = specs_of(_configured_sinks(run) if sinks is None else sinks)
    if not specs:
        raise ConfigError(
            f"the run {run.id} has no configured sink to deliver to; pass sinks= (--sinks)"
        )
    _prepare(run_folder)
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    host = ThreadHost(run_folder, specs)
    # If the consumers know the final status before they start, a sink that already has everything
    # is not opened again.
    if not follow:
        host.end(run.status)
    host.start()
    while follow and run.status == "running" and time.monotonic() < deadline:
        time.sleep(_POLL_SECS)
        host.wake()
        run = mark_dead_run(run_folder)
    if follow:
        host.end(run.status)
    host.wait_until_closed(deadline)
    total = _count_journal_values(run_folder, ended=run.status != "running")
    return {name: tally.counts(total) for name, tally in host.tallies().items()}


def _prepare(folder: RunFolder) -> None:
    """Raise early if the journal cannot be read, and create the offsets folder if it is missing."""
    reader = JournalReader(folder.journal)
    for segment in reader.segments():
        next(reader.read_segment(segment), None)
    folder.offsets.mkdir(exist_ok=True)


def _configured_sinks(run: Run) -> list[str | Sink]:
    urls = [url for url in run.sinks if not url.startswith(OBJECT_PREFIX)]
    for url in urls:
        if _MASK in url:
            raise ConfigError(
                f"the run {run.id} does not store secrets, which {url!r} requires; pass the full "
                "URL with sinks= (--sinks)"
            )
    return [url for url in urls if not find_sink(parse_sink(url).name).training_process_only]


def _count_journal_values(folder: RunFolder, *, ended: bool) -> int:
    """Count all values in the journal; if the run has ended, with those in partial rows."""
    total = 0
    headers_and_rewinds: list[Row] = []

    def count() -> Iterator[Row]:
        nonlocal total
        for row in JournalReader(folder.journal).read():
            total += 0 if row.record is None else count_values(row.record)
            if isinstance(row.record, Header | Rewind):
                headers_and_rewinds.append(row)
            yield row

    partial = partial_rows(count())  # in one pass, without keeping the rows
    if ended:
        rewinds, states = Rewinds(headers_and_rewinds), segment_states(folder.journal)
        broken = {segment for segment, state in states.items() if state.is_broken}
        total += sum(
            len(row.values)
            for segment, row in partial
            if segment in broken and not rewinds.supersedes_partial(segment, row)
        )
    return total

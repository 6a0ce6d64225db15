"""Delivers the journal of an existing run, be it live, finished or killed, to any sinks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.report import SinkCounts
from metricbus._delivery.sink_specs import OBJECT_PREFIX, specs_of
from metricbus._delivery.thread_host import ThreadHost
from metricbus._journal.crash_recovery import mark_dead_run
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.run_summary import summarize_run
from metricbus._journal.segment_reader import JournalReader
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
    summary = summarize_run(run_folder, with_courses=False)
    total = summary.journal_values + (summary.pending_partial if run.status != "running" else 0)
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
    return [url for url in urls if find_sink(parse_sink(url).name).process != "training"]

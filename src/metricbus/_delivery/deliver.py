"""Delivering a run's journal later: of a run that lives, has ended, or was killed, to any sink."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from metricbus._common.records import count_values
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.report import SinkCounts
from metricbus._delivery.sink_specs import OBJECT_PREFIX, specs_of
from metricbus._delivery.thread_host import ThreadHost
from metricbus._journal.recovery import endings, mark_dead_run, partial_rows
from metricbus._journal.rewind import Rewinds
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import JournalReader
from metricbus.errors import ConfigError
from metricbus.sinks import Sink, find_sink

_LOOK_EVERY = 0.2
_MASK = "***"


def deliver(
    folder: str | os.PathLike[str],
    sinks: str | Sequence[str | Sink] | None = None,
    *,
    follow: bool = False,
    timeout: float | None = None,
) -> dict[str, SinkCounts]:
    """Brings what a run has logged to sinks; what each has then, by its name.

    `sinks` is like that of `MetricBus`; left out, they are those that the run was told to write to
    (but for those that live in the training process alone). What a sink has already is not
    delivered twice. Of a run that lives, `follow` brings along what it logs until it ends; without,
    what is there now. Gives up after `timeout` seconds, if that is given: `pending` tells what is
    left. A run whose process has died is marked as killed.

    Raises `JournalError` if there is no run, or one of a newer format, and `ConfigError` for sinks
    that cannot work.
    """
    run_folder = RunFolder(Path(folder))
    run = mark_dead_run(run_folder)
    specs = specs_of(_sinks_of(run) if sinks is None else sinks)
    if not specs:
        raise ConfigError(
            f"the run {run.id} names no sink to deliver to; name some by sinks= (--sinks)"
        )
    _make_ready(run_folder)
    deadline = None if timeout is None else time.monotonic() + timeout
    delivery = ThreadHost(run_folder, specs)
    if not follow:
        delivery.end(run.status)  # before it begins: a sink that has all is not opened again
    delivery.start()
    while follow and run.status == "running" and not _is_over(deadline):
        time.sleep(_LOOK_EVERY)
        delivery.wake()
        run = mark_dead_run(run_folder)
    if follow:
        delivery.end(run.status)
    delivery.wait_until_closed(float("inf") if deadline is None else deadline)
    journalled = _values_in(run_folder, ended=run.status != "running")
    return {name: tally.counts(journalled) for name, tally in delivery.tallies().items()}


def _make_ready(folder: RunFolder) -> None:
    """Raises where delivery would try again and again; makes the folder that only we write.

    A run that somebody else wrote has a journal, and no place for the sinks' progress yet.
    """
    reader = JournalReader(folder.journal)
    for segment in reader.segments():
        next(reader.read_segment(segment), None)
    folder.offsets.mkdir(exist_ok=True)


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _sinks_of(run: Run) -> list[str | Sink]:
    """The URLs that the run was told, of sinks that do not live in the training process."""
    urls = [url for url in run.sinks if not url.startswith(OBJECT_PREFIX)]
    for url in urls:
        if _MASK in url:
            raise ConfigError(
                f"the run {run.id} keeps no secrets, and {url!r} has some: name the "
                "sink by sinks= (--sinks)"
            )
    return [url for url in urls if not find_sink(parse_sink(url).name).training_process_only]


def _values_in(folder: RunFolder, *, ended: bool) -> int:
    """All values, those in open reductions of processes that died among them."""
    rows = list(JournalReader(folder.journal).read())
    values = sum(count_values(row.record) for row in rows if row.record is not None)
    if ended:
        rewinds, segments = Rewinds(rows), endings(folder.journal)
        broken = {segment for segment, ending in segments.items() if ending.is_broken}
        values += sum(
            len(row.values)
            for segment, row in partial_rows(rows)
            if segment in broken and not rewinds.supersede_partial(segment, row)
        )
    return values

"""A run as `show` and `compare` read it, and what they say where that cannot be done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

from metricbus._cli.console import fail, failing
from metricbus._cli.format import reading
from metricbus._history.run_status import Condition, condition
from metricbus._history.run_summary import RunSummary, summarise
from metricbus._history.sink_status import Standing, progress_in, standings
from metricbus._journal.run import Run, RunFolder, flat_config
from metricbus.errors import ConfigError


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it was read."""

    folder: RunFolder
    run: Run
    status: Condition
    summary: RunSummary
    sinks: list[Standing]


def read_run(folder: RunFolder) -> Reading:
    """Reads all of a run, with a bar where that takes its time; fails where it cannot be read."""
    with failing(folder.path):
        run = folder.load()
        with reading(f"reading {run.id}") as tell:
            summary = summarise(folder, tell)
        sinks = standings(folder, run, progress_in(folder), summary.lengths)
        return Reading(
            folder=folder,
            run=run,
            status=condition(folder, run),
            summary=summary,
            sinks=sinks,
        )


def fail_for_name(glob: str, names: Iterable[str]) -> NoReturn:
    """Says that nothing has a name of this kind, and which ones are near."""
    known = sorted(set(names))
    near = difflib.get_close_matches(glob, known, n=3)
    if near:
        fail(f"nothing is called {glob!r}; did you mean {' or '.join(near)}?")
    listed = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    fail(f"nothing is called {glob!r}; there is: {listed or 'nothing yet'}")


def config_of(run: Run) -> dict[str, Any]:
    """The config without nesting, as far as that can be had."""
    try:
        return flat_config(run.config)
    except ConfigError:
        return run.config


def seconds_of(read: Reading) -> float | None:
    """How long the run has taken, or takes."""
    run, last = read.run, read.summary.last_time
    until = run.ended or last
    return (until - run.started) / 1e9 if until and run.started else None


def dropped_in_words(read: Reading) -> str:
    """How many values are in no file, and why; empty if there is nothing to tell."""
    told = read.summary.dropped
    reasons = (
        (told.queue, "met a full queue"),
        (told.media, "were media that could not be encoded in time"),
        (told.unwritable, "could not be had or written"),
    )
    why = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
    if told.is_final:
        return f"{told.total:,} ({why})" if told.total else ""
    if read.status == "running":
        return f"{told.total:,} so far ({why})" if told.total else ""
    unknown = "whether there were more is not known: nobody ended the journal and said so"
    return f"{told.total:,} ({why}); {unknown}" if told.total else "not known; nobody said"


def pending(read: Reading, sink: Standing) -> int:
    """Values that the sink has not dealt with, in one way or another."""
    summary = read.summary
    total = summary.journalled + (0 if read.status == "running" else summary.pending_open)
    return max(0, total - sink.done)


def why(read: Reading, sink: Standing) -> str:
    """Why something is pending or was rejected, as far as that is known; empty if nothing is."""
    is_behind = pending(read, sink) > 0
    parts = [sink.error] if sink.error and (is_behind or sink.rejected) else []
    if is_behind:
        if sink.deliverer:
            parts.append(f"{sink.deliverer} delivers to it now")
        elif read.status != "running":
            command = f"metricbus deliver {read.folder.path}"
            own = sink.sink in read.run.sinks
            parts.append("nobody delivers to it; " + (command if own else f"{command} --sinks …"))
    if sink.rejected and not sink.error:
        parts.append(f"it refused {sink.rejected:,} values; the log of the delivery says why")
    return "; ".join(parts)

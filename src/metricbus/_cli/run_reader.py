"""Reads a run with its summary and the state of its sinks, for `ls`, `show` and `compare`."""

from __future__ import annotations

from typing import Any

import msgspec

from metricbus._cli.console import report_errors
from metricbus._cli.format import progress_bar
from metricbus._common.records import Number
from metricbus._history.run_status import CurrentStatus, current_status
from metricbus._history.sink_status import SinkStatus, read_all_progress, sink_statuses
from metricbus._journal.run import Run, RunFolder, flat_config
from metricbus._journal.run_summary import RunSummary, summarize_run
from metricbus._journal.run_updates import complete_run
from metricbus._journal.segment_reader import OnProgress
from metricbus.errors import ConfigError


class RunDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A run with its status, a summary of all it logged, and the state of its sinks."""

    folder: RunFolder
    run: Run
    status: CurrentStatus
    summary: RunSummary
    sinks: list[SinkStatus]

    @property
    def config(self) -> dict[str, Any]:
        """The config with nested keys joined by `/`; unchanged if that is not possible."""
        try:
            return flat_config(self.run.config)
        except ConfigError:
            return self.run.config

    @property
    def last_values(self) -> dict[str, Number]:
        """The newest value of each series, then the final values in the summary of the run."""
        last = {name: series.last for name, series in self.summary.series.items()}
        return last | self.run.summary

    @property
    def seconds(self) -> float | None:
        """How long the run took, or has taken so far; None if unknown."""
        end = self.run.ended or self.summary.last_time
        return (end - self.run.started) / 1e9 if end and self.run.started else None

    def describe_dropped(self) -> str:
        """Return how many values were dropped, and why; empty if none were."""
        dropped = self.summary.dropped
        reasons = (
            (dropped.queue, "because the queue was full"),
            (dropped.media, "because media could not be encoded in time"),
            (dropped.unwritable, "because they could not be read or written"),
        )
        why = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
        if not dropped.total:
            is_known = dropped.is_final or self.status == "running"
            return "" if is_known else "unknown, because the run was never closed"
        counts = f"{dropped.total:,}"
        if not dropped.is_final:
            counts += " so far" if self.status == "running" else " or more"
        return f"{counts} ({why})"

    def pending(self, sink: SinkStatus) -> int:
        """Return the number of values that the sink has yet to process."""
        partial = 0 if self.status == "running" else self.summary.pending_partial
        return max(0, self.summary.journal_values + partial - sink.processed)

    def explain(self, sink: SinkStatus) -> str:
        """Return why values are pending or were rejected; empty if none are."""
        is_behind = self.pending(sink) > 0
        reasons = [sink.error] if sink.error and (is_behind or sink.rejected) else []
        if is_behind and sink.deliverer:
            reasons.append(f"{sink.deliverer} is delivering to it")
        elif is_behind and self.status != "running":
            command = f"metricbus deliver {self.folder.path}"
            if sink.sink not in self.run.sinks:
                command += " --sinks ..."
            reasons.append(f"no process is delivering to it; run {command}")
        if sink.rejected and not sink.error:
            reasons.append(f"it rejected {sink.rejected:,} values; the delivery log has the reason")
        return "; ".join(reasons)


def read_run(folder: RunFolder) -> RunDetails:
    """Read a run behind a progress bar; exits with an error if it cannot be read."""
    with (
        report_errors(folder.path),
        progress_bar(f"Reading {folder.path.name}") as on_progress,
    ):
        return read_details(folder, on_progress)


def read_details(
    folder: RunFolder,
    on_progress: OnProgress = lambda done, total: None,
    *,
    with_courses: bool = True,
) -> RunDetails:
    """Read a run; `with_courses` says whether the course of each series is needed.

    Raises `JournalError` or `OSError` if the run folder cannot be read.
    """
    run = complete_run(folder)
    summary = summarize_run(folder, on_progress, with_courses=with_courses)
    return RunDetails(
        folder=folder,
        run=run,
        status=current_status(folder, run),
        summary=summary,
        sinks=sink_statuses(folder, run, read_all_progress(folder), summary.lengths),
    )

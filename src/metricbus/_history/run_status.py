"""Determines the actual status of a run from run.json and the ends of its segments."""

from __future__ import annotations

import time
from typing import Literal, TypeAlias

from metricbus._journal.crash_recovery import segment_states
from metricbus._journal.run import Run, RunFolder
from metricbus._journal.segment_reader import JournalReader

CurrentStatus: TypeAlias = Literal["running", "silent", "finished", "failed", "killed"]
"""The actual status of a run. It differs from run.json if the process died without updating it.

`silent` is a run on another host, or of an unknown writer, that has not ended and has written
nothing for a minute. Whether its process is alive cannot be checked from here.
"""

_SILENT_SECS = 60.0


def current_status(folder: RunFolder, run: Run) -> CurrentStatus:
    """Determine the actual status of a run, without writing it to run.json."""
    if run.status != "running":
        return run.status
    ends = segment_states(folder.journal)
    if run.process.is_local:
        if run.process.is_alive():
            return "running"
        ends = {name: end for name, end in ends.items() if end.writer == run.process}
        recorded = [end.status for end in ends.values() if end.status]
        return recorded[-1] if recorded else "killed"
    last = list(ends.values())[-1].status if ends else None
    if last and all(end.status for end in ends.values()):
        return last
    silent_secs = time.time() - JournalReader(folder.journal).modified_ns() / 1e9
    return "silent" if silent_secs > _SILENT_SECS else "running"

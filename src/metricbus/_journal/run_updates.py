"""The updates of a run in its journal: what its config, tags and summary have gained.

run.json has the updates of the process that started the run, as of its last write. Together with
those in the journal it is complete; an update that it already has changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metricbus._common.records import (
    RANK_PREFIX,
    Best,
    Header,
    Number,
    RunUpdate,
    ScalarRow,
    rank_prefix,
    with_rank_prefix,
)
from metricbus._journal.rewind import find_rewinds
from metricbus._journal.run import Run, RunFolder, is_better
from metricbus._journal.segment_reader import JournalReader

BEST_PREFIX = "best/"
"""In the summary, the best value of `val/acc` is named `best/val/acc`."""


def complete_run(folder: RunFolder) -> Run:
    """Read run.json, and apply the updates in the journal in the order in which they were made.

    Raises `JournalError` or `OSError` if the run cannot be read.
    """
    run = folder.load()
    updates: list[tuple[int, int, RunUpdate]] = []
    segment, attempt, newest = "", 1, 0
    for row in JournalReader(folder.journal).rows((Header, RunUpdate)):
        if row.segment != segment:
            segment, attempt, newest = row.segment, 1, 0
        if isinstance(row.record, Header):
            attempt = row.record.attempt
        elif isinstance(row.record, RunUpdate):
            newest = max(newest, row.record.time)  # the clock may have been set back
            updates.append((attempt, newest, row.record))
    updates.sort(key=lambda item: item[:2])
    return run.updated(*(with_rank_prefix(update) for _, _, update in updates))


def has_updates(journal: Path) -> bool:
    """Check whether the journal has any update."""
    return any(True for _ in JournalReader(journal).rows((RunUpdate,)))


def current_best(
    journal: Path, rank: int, mode_of: Callable[[str], Best | None] | None
) -> dict[int, dict[str, Number | None]]:
    """Return, by rank and name, the best of the values that no rewind supersedes; None without one.

    The names are those for which the journal has a best value, or which `mode_of` this rank says
    how to compare. Rank 0 covers the names of all ranks, any other rank its own.
    """
    own_prefix = rank_prefix(rank)
    wanted: dict[str, tuple[int, str, Best]] = {}  # by the name with its rank
    best: dict[int, dict[str, Number | None]] = {}
    for row in JournalReader(journal).rows((RunUpdate,)):
        update = row.record
        if isinstance(update, RunUpdate) and update.best and rank in (0, update.rank):
            prefix = rank_prefix(update.rank)
            for key in update.summary:
                name = key.removeprefix(BEST_PREFIX)
                wanted[prefix + name] = update.rank, name, update.best
                best.setdefault(update.rank, {})[name] = None

    def is_wanted(key: str) -> bool:
        is_own = key.startswith(own_prefix) and (rank or not RANK_PREFIX.match(key))
        if mode_of and is_own and key not in wanted:
            name = key.removeprefix(own_prefix)
            if mode := mode_of(name):
                wanted[key] = rank, name, mode
                best.setdefault(rank, {})[name] = None
        return key in wanted

    if not (wanted or mode_of):
        return {}
    rewinds = find_rewinds(journal)
    for row in JournalReader(journal).rows((ScalarRow,), is_wanted):
        record = row.record
        if not isinstance(record, ScalarRow) or rewinds.supersedes(row.segment, row.line, record):
            continue
        for key, value in with_rank_prefix(record).values.items():
            if is_wanted(key):
                number, name, mode = wanted[key]
                if is_better(value, best[number][name], mode):
                    best[number][name] = value
    return best

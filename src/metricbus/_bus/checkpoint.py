"""The state of a bus in a training checkpoint, and returning to an earlier step."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from metricbus._bus.session import Session
from metricbus._common.clock import Clock, check_step
from metricbus._common.distributed import current_rank
from metricbus._common.media_records import MediumRecord
from metricbus._common.records import EPOCH_TIME, End, Epoch, Rewind, ScalarRow
from metricbus._common.validation import INT_MAX
from metricbus._ingest.commands import ApplyRewind, Snapshot
from metricbus._journal.segment_reader import JournalReader

_log = logging.getLogger("metricbus")

_VERSION = 1
_KEYS = {"version", "run", "attempt", "place", "clock", "reductions"}


def save_state(session: Session | None, clock: Clock, timeout: float) -> dict[str, Any]:
    """Return the state of a bus: JSON-compatible values that any checkpoint format can store.

    `place` is the position in the journal: a segment, and its next line. `reductions` are the
    partial aggregates; they are missing, with a warning, if the collector takes longer than
    `timeout` seconds.
    """
    state: dict[str, Any] = {
        "version": _VERSION,
        "run": session.run.id if session and session.run else None,
        "attempt": session.run.attempt if session and session.run else 0,
        "rank": current_rank().number,
        "place": ["", 0],
        "clock": clock.state(),
        "reductions": [],
    }
    if session is not None:
        snapshot = Snapshot()
        if session.submit_and_wait(snapshot, timeout):
            state["reductions"] = snapshot.state
            state["place"] = list(snapshot.position)
        else:
            _log.warning(
                "The journal cannot be written at the moment: the checkpoint does not include the "
                "pending reductions"
            )
    return state


def load_state(
    state: Mapping[str, Any], session: Session | None, clock: Clock, timeout: float
) -> None:
    """Restore a state from `save_state`. Rows logged after the checkpoint are superseded.

    Raises `ValueError` if `state` is not such a state.
    """
    if not isinstance(state, Mapping) or not state.keys() >= _KEYS:
        raise ValueError(
            "load_state_dict() needs a state that state_dict() returned, with the keys "
            f"{sorted(_KEYS)}, not {_describe(state)}"
        )
    if state["version"] != _VERSION:
        raise ValueError(
            f"the state has version {state['version']!r}, but this metricbus reads version "
            f"{_VERSION}; upgrade with pip install --upgrade metricbus"
        )
    is_ahead = clock.step > state["clock"]["step"]
    clock.restore(state["clock"])
    if session is None:
        return
    is_same_rank = state.get("rank", 0) == current_rank().number
    # Partial aggregates of another rank are restored there. Here they would count twice.
    reductions = state["reductions"] if is_same_rank else []
    record = None
    if session.run is not None and session.run.id == state["run"]:
        segment, line = state["place"]
        epoch_end = _line_after_epoch_end(session, state)
        if epoch_end is not None:
            line, reductions = epoch_end, []
        position = {}
        if is_same_rank or session.rank == 0:
            position = {"segment": segment, "line": line}
        record = _rewind_record(clock, attempt=state["attempt"], **position)
    elif is_ahead:  # the checkpoint belongs to another run
        record = _rewind_record(clock)
    _apply(session, record, reductions, timeout)


def rewind(
    step: int, epoch: int | None, session: Session | None, clock: Clock, timeout: float
) -> None:
    """Return to an earlier step. Rows logged at a later step are superseded."""
    step = check_step(step)
    clock.move_past(step, clock.epoch if epoch is None else check_step(epoch, "epoch"))
    if session is not None:
        _apply(session, _rewind_record(clock), [], timeout)


def _apply(
    session: Session, record: Rewind | None, reductions: Sequence[Any], timeout: float
) -> None:
    """Submit a rewind, restricted to what this rank may supersede.

    If several ranks write, rank 0 supersedes rows by step for all of them, because other ranks may
    already have logged newer rows. Each other rank supersedes only the rows that it wrote itself
    after the checkpoint.
    """
    if session.rank > 0 and record is not None:
        own = msgspec.structs.replace(record, step=INT_MAX, attempt=0, rank=session.rank)
        record = own if record.segment else None
    command = ApplyRewind(record, reductions)
    session.submit_after_media(command, timeout)
    # Until then, `bus.last()` would return values that are superseded.
    command.done.wait(timeout)


def _line_after_epoch_end(session: Session, state: Mapping[str, Any]) -> int | None:
    """Return the line after the epoch's end, if nothing else was logged after the checkpoint.

    That is so if the checkpoint is the last statement in the body of an `epochs()` loop. The sinks
    then have the epoch's results already, which must not be logged again.
    """
    (segment, line), clock = state["place"], state["clock"]
    if session.folder is None or not clock.get("in_epochs") or clock.get("in_steps"):
        return None
    windows = {name for kind, name, _ in state["reductions"] if kind == "window"}
    expected = windows | {EPOCH_TIME}
    for row in JournalReader(session.folder.journal).read_segment(segment):
        record = row.record
        if row.line < line:
            continue
        if isinstance(record, Epoch):
            has_ended = record.seconds is not None and record.epoch == clock["epoch"]
            return row.line + 1 if has_ended else None
        if isinstance(record, End):  # the loop body ended the run after the checkpoint
            return row.line
        if isinstance(record, ScalarRow):
            is_other_row = not (record.is_per_epoch or record.values.keys() <= expected)
        else:
            is_other_row = isinstance(record, MediumRecord | Rewind)
        if is_other_row:
            return None
    return None


def _rewind_record(clock: Clock, **position: Any) -> Rewind:
    return Rewind(step=clock.step, epoch=clock.epoch, time=time.time_ns(), **position)


def _describe(state: object) -> str:
    if isinstance(state, Mapping):
        return f"a mapping with the keys {sorted(map(str, state))[:5]}"
    return f"{type(state).__name__}: {state!r:.60}"

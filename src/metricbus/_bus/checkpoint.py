"""Where a run stands, for a training's own checkpoints: step, epoch, and what is open."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from metricbus._bus.session import Session
from metricbus._common.clock import Clock, check_step
from metricbus._common.distributed import find_rank
from metricbus._common.media_records import MediumRecord
from metricbus._common.records import EPOCH_TIME, End, Epoch, Rewind, Scalars
from metricbus._common.validation import INT_MAX
from metricbus._ingest.commands import ApplyRewind, Snapshot
from metricbus._journal.segment_reader import JournalReader

_log = logging.getLogger("metricbus")

_VERSION = 1
_KEYS = {"version", "run", "attempt", "place", "clock", "reductions"}


def take(session: Session | None, clock: Clock, timeout: float) -> dict[str, Any]:
    """The state, as plain values that any checkpoint format can hold."""
    state: dict[str, Any] = {
        "version": _VERSION,
        "run": session.run.id if session and session.run else None,
        "attempt": session.run.attempt if session and session.run else 0,
        "rank": find_rank().number,
        "place": ["", 0],
        "clock": clock.state(),
        "reductions": [],
    }
    if session is not None:
        snapshot = Snapshot()
        if session.submit_and_wait(snapshot, timeout):
            state["reductions"] = snapshot.state
            state["place"] = list(snapshot.place)
        else:
            _log.warning("the journal is held up: the checkpoint has no open reductions")
    return state


def put_back(
    state: Mapping[str, Any], session: Session | None, clock: Clock, timeout: float
) -> None:
    """Makes the run stand where it stood; what was logged beyond that is superseded.

    Raises `ValueError` for what is no state.
    """
    if not isinstance(state, Mapping) or not state.keys() >= _KEYS:
        raise ValueError(
            f"load_state_dict() takes what state_dict() gave, with {sorted(_KEYS)}; "
            f"this is {_in_short(state)}"
        )
    if state["version"] != _VERSION:
        raise ValueError(
            f"the state is of version {state['version']!r}, this metricbus reads {_VERSION}: "
            "pip install --upgrade metricbus"
        )
    was_ahead = clock.step > state["clock"]["step"]
    clock.restore(state["clock"])
    if session is not None:
        record = None
        reductions = state["reductions"]
        if state.get("rank", 0) != find_rank().number:
            reductions = []  # what was open on another rank is not to be counted twice
        if session.run is not None and session.run.id == state["run"]:
            segment, line = state["place"]
            beyond = _end_of_epoch(session, state)
            if beyond is not None:
                line, reductions = beyond, []
            is_own = state.get("rank", 0) == find_rank().number or session.rank == 0
            place = {"segment": segment, "line": line} if is_own else {}
            record = _rewind_to(clock, attempt=state["attempt"], **place)
        elif was_ahead:  # the checkpoint is another run's
            record = _rewind_to(clock)
        _go_back(session, record, reductions, timeout)


def _go_back(
    session: Session, record: Rewind | None, reductions: Sequence[Any], timeout: float
) -> None:
    """Where several ranks write, the first one speaks for all of steps: others may be ahead of it.

    They speak of what they themselves had written after the checkpoint.
    """
    if session.rank > 0 and record is not None:
        own = msgspec.structs.replace(record, step=INT_MAX, attempt=0, rank=session.rank)
        record = own if record.segment else None
    session.submit(ApplyRewind(record, reductions), timeout)


def _end_of_epoch(session: Session, state: Mapping[str, Any]) -> int | None:
    """The line after the end of the epoch, if that was all that came after the checkpoint.

    So it is where the checkpoint is the last thing in the body of an `epochs()` loop. What the
    epoch gave is in every sink by then, and need not come again.
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
        if isinstance(record, End):  # the run was ended in the body, after the checkpoint
            return row.line
        if isinstance(record, MediumRecord | Rewind):
            return None
        if (
            isinstance(record, Scalars)
            and record.axis != "epoch"
            and record.values.keys() - expected
        ):
            return None
    return None


def rewind(
    step: int, epoch: int | None, session: Session | None, clock: Clock, timeout: float
) -> None:
    """Makes the run stand at an earlier step; what was logged beyond it is superseded."""
    step = check_step(step)
    clock.go_to(step, clock.epoch if epoch is None else check_step(epoch, "epoch"))
    if session is not None:
        _go_back(session, _rewind_to(clock), [], timeout)


def _rewind_to(clock: Clock, **place: Any) -> Rewind:
    return Rewind(step=clock.step, epoch=clock.epoch, time=time.time_ns(), **place)


def _in_short(state: object) -> str:
    if isinstance(state, Mapping):
        return f"a mapping with {sorted(map(str, state))[:5]}"
    return f"{type(state).__name__}: {state!r:.60}"

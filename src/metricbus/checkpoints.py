"""Where a run stands, for a training's own checkpoints: step, epoch, and what is open."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from metricbus.collector import GoBack, Snapshot
from metricbus.engine import Engine
from metricbus.records import Rewind
from metricbus.steps import Clock, check_step

_log = logging.getLogger("metricbus")

_VERSION = 1
_KEYS = {"version", "run", "attempt", "place", "clock", "reductions"}


def take(engine: Engine | None, clock: Clock, timeout: float) -> dict[str, Any]:
    """The state, as plain values that any checkpoint format can hold."""
    state: dict[str, Any] = {
        "version": _VERSION,
        "run": engine.run.id if engine else None,
        "attempt": engine.run.attempt if engine else 0,
        "place": ["", 0],
        "clock": clock.state(),
        "reductions": [],
    }
    if engine is not None:
        snapshot = Snapshot()
        if engine.obey(snapshot, timeout):
            state["reductions"] = snapshot.state
            state["place"] = list(snapshot.place)
        else:
            _log.warning("the journal is held up: the checkpoint has no open reductions")
    return state


def put_back(state: Mapping[str, Any], engine: Engine | None, clock: Clock, timeout: float) -> None:
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
    if engine is not None:
        record = None
        if engine.run.id == state["run"]:
            segment, line = state["place"]
            record = _rewind_to(clock, attempt=state["attempt"], segment=segment, line=line)
        elif was_ahead:  # the checkpoint is another run's
            record = _rewind_to(clock)
        engine.order(GoBack(record, state["reductions"]), timeout)


def rewind(
    step: int, epoch: int | None, engine: Engine | None, clock: Clock, timeout: float
) -> None:
    """Makes the run stand at an earlier step; what was logged beyond it is superseded."""
    step = check_step(step)
    clock.go_to(step, clock.epoch if epoch is None else check_step(epoch, "epoch"))
    if engine is not None:
        engine.order(GoBack(_rewind_to(clock)), timeout)


def _rewind_to(clock: Clock, **place: Any) -> Rewind:
    return Rewind(step=clock.step, epoch=clock.epoch, time=time.time_ns(), **place)


def _in_short(state: object) -> str:
    if isinstance(state, Mapping):
        return f"a mapping with {sorted(map(str, state))[:5]}"
    return f"{type(state).__name__}: {state!r:.60}"

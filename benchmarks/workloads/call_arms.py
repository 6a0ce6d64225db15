"""Arms of the case `calls`: loops that call floors, metricbus, and peers.

`opened` opens an arm by name in a new folder. Arms that are not opened are not imported.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import PEERS, Peer, mlflow_peer
from benchmarks.workloads.ours import ALL, TIMEOUT_SECS, opened_bus

NAME, VALUE = "train/loss", 0.5
ROW = {f"train/metric{i}": i / 7 for i in range(20)}
UNLIMITED = 10**7  # more calls than any arm makes

Loop = Callable[[range], None]


class Arm(NamedTuple):
    """One way to log, as loops over a range of steps.

    `loop` makes one call per step; `empty` is the same loop without the call. `rest` runs after
    each measurement. `read_back` counts the values after the arm has been closed; it is None for
    arms that this process cannot count.
    """

    loop: Loop
    empty: Loop
    values: int = 1  # per call
    rest: Callable[[], object] = lambda: None
    read_back: Callable[[], int] | None = None


Opened = AbstractContextManager[Arm]


def _empty_loop(steps: range) -> None:
    for _ in steps:
        pass


# Floors


def deque_append() -> Opened:
    """Open a floor that appends tuples to a deque: the cheapest way to hand a value to a thread."""
    calls: deque[object] = deque()

    def loop(steps: range) -> None:
        append, name, value = calls.append, NAME, VALUE
        for step in steps:
            append((name, value, step))

    return nullcontext(Arm(loop, _empty_loop, read_back=lambda: len(calls)))


class _PlainLogger:
    """Logger whose `log` only reads the time and appends the arguments."""

    def __init__(self) -> None:
        self.calls: deque[object] = deque()

    def log(
        self,
        name: str,
        value: float,
        *,
        step: int | None = None,
        epoch: int | None = None,
        weight: float | None = None,
    ) -> None:
        self.calls.append((name, value, step, epoch, time.time_ns()))


def plain_method() -> Opened:
    """Open a floor that calls a pure-Python method which does not examine its arguments."""
    plain_logger = _PlainLogger()

    def loop(steps: range) -> None:
        log, name, value = plain_logger.log, NAME, VALUE
        for step in steps:
            log(name, value, step=step)

    return nullcontext(Arm(loop, _empty_loop, read_back=lambda: len(plain_logger.calls)))


def dict_append() -> Opened:
    """Open a floor that appends a copy of a mapping, so that the caller may change the original."""
    rows: deque[dict[str, float]] = deque()

    def loop(steps: range) -> None:
        append, row = rows.append, ROW
        for _ in steps:
            append(dict(row))

    return nullcontext(Arm(loop, _empty_loop, len(ROW), read_back=lambda: sum(map(len, rows))))


# metricbus


def _log_values(bus: Any, value: object) -> Loop:
    def loop(steps: range) -> None:
        log, name = bus.log, NAME
        for step in steps:
            log(name, value, step=step)

    return loop


def _log_rows(bus: Any) -> Loop:
    def loop(steps: range) -> None:
        log, row = bus.log, ROW
        for step in steps:
            log(row, step=step)

    return loop


def _log_in_steps(bus: Any) -> Loop:
    def loop(steps: range) -> None:
        log, name, value = bus.log, NAME, VALUE
        for _ in bus.steps(steps):
            log(name, value)

    return loop


def _log_tensor(bus: Any) -> Loop:
    import torch

    return _log_values(bus, torch.tensor(VALUE))


@contextmanager
def held_back(folder: Path, make_loop: Callable[[Any], Loop], values: int) -> Iterator[Arm]:
    """Open a bus whose five sinks receive the values at the end; only the caller is timed."""
    settings = {"batch_size": UNLIMITED, "queue_size": UNLIMITED, "flush_bytes": 1 << 40}
    settings |= {"queue_bytes": 1 << 40, "flush_secs": 3600}
    with opened_bus(folder, ALL, **settings) as bus:
        loop = make_loop(bus)
        bus.flush(TIMEOUT_SECS)  # imports and opens everything
        yield Arm(loop, _empty_loop, values)


@contextmanager
def delivering(folder: Path) -> Iterator[Arm]:
    """Open a bus whose five sinks work during the calls; `rest` waits until they have finished."""
    with opened_bus(folder, ALL) as bus:
        bus.flush(TIMEOUT_SECS)
        yield Arm(_log_values(bus, VALUE), _empty_loop, rest=lambda: bus.flush(TIMEOUT_SECS))


def switched_off() -> Opened:
    """Open a disabled bus."""
    from metricbus import MetricBus

    return nullcontext(
        Arm(
            _log_values(MetricBus(disabled=True), VALUE), _empty_loop, values=0, read_back=lambda: 0
        )
    )


# Peers


class _EmptyPeer:
    """Stub with a peer's interface, used to measure the cost of the loop around a peer's call."""

    def log(self, name: str, value: float, step: int) -> None:
        pass

    def log_row(self, values: dict[str, float], step: int) -> None:
        pass


def _peer_loop(peer: Any, *, by_row: bool) -> Loop:
    def loop_values(steps: range) -> None:
        log, name, value = peer.log, NAME, VALUE
        for step in steps:
            log(name, value, step)

    def loop_rows(steps: range) -> None:
        log, row = peer.log_row, ROW
        for step in steps:
            log(row, step)

    return loop_rows if by_row else loop_values


@contextmanager
def peer_arm(peer: Peer, *, by_row: bool) -> Iterator[Arm]:
    """Open an arm that calls a peer; `rest` flushes the peer if it supports that."""
    yield Arm(
        _peer_loop(peer, by_row=by_row),
        _peer_loop(_EmptyPeer(), by_row=by_row),
        len(ROW) if by_row else 1,
        peer.flush,
        peer.count,
    )
    peer.close()


OURS: dict[str, Callable[[Path], Opened]] = {
    "log": lambda folder: held_back(folder, lambda bus: _log_values(bus, VALUE), 1),
    "log, mapping": lambda folder: held_back(folder, _log_rows, len(ROW)),
    "log, in steps": lambda folder: held_back(folder, _log_in_steps, 1),
    "log, tensor": lambda folder: held_back(folder, _log_tensor, 1),
    "log, delivering": delivering,
    "log, disabled": lambda folder: switched_off(),
    "deque": lambda folder: deque_append(),
    "method": lambda folder: plain_method(),
    "dict": lambda folder: dict_append(),
}
"""Floors and metricbus's arms by name. Peers are named as in `PEERS`, plus `: row` for rows."""


def opened(arm: str, folder: Path, uri: str) -> Opened:
    """Return the arm of this name in a new folder; `uri` is for arms that need a server."""
    if arm in OURS:
        return OURS[arm](folder)
    name, _, variant = arm.partition(": ")
    peer = mlflow_peer(folder, uri) if uri else PEERS[name](folder)
    return peer_arm(peer, by_row=variant == "row")

"""What is timed in the case `calls`: floors, metricbus, and peers, as loops that make calls.

Each is opened in a new folder by its name. What is not opened is not imported either.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import PEERS, Peer, mlflow_peer
from benchmarks.workloads.ours import ALL, PATIENCE, opened_bus

NAME, VALUE = "train/loss", 0.5
ROW = {f"train/metric{i}": i / 7 for i in range(20)}
PLENTY = 10**7  # more calls than any arm makes

Loop = Callable[[range], None]


class Arm(NamedTuple):
    """`loop` makes a call a step and `empty` does all but that; `rest` comes after each value.

    `read_back` counts the values after the end, for arms that can be counted here.
    """

    loop: Loop
    empty: Loop
    values: int = 1  # a call
    rest: Callable[[], object] = lambda: None
    read_back: Callable[[], int] | None = None


Opened = AbstractContextManager[Arm]


def _nothing(steps: range) -> None:
    for _ in steps:
        pass


# The floors.


def deque_append() -> Opened:
    """What hands a value to another thread with the least there is."""
    waiting: deque[object] = deque()

    def loop(steps: range) -> None:
        append, name, value = waiting.append, NAME, VALUE
        for step in steps:
            append((name, value, step))

    return nullcontext(Arm(loop, _nothing, read_back=lambda: len(waiting)))


class _Plain:
    """A method that takes what `log` takes, reads the time and appends."""

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
    """What any such call costs in plain Python, before it looks at anything."""
    plain = _Plain()

    def loop(steps: range) -> None:
        log, name, value = plain.log, NAME, VALUE
        for step in steps:
            log(name, value, step=step)

    return nullcontext(Arm(loop, _nothing, read_back=lambda: len(plain.calls)))


def dict_append() -> Opened:
    """What keeps a mapping that the caller may change afterwards."""
    waiting: deque[dict[str, float]] = deque()

    def loop(steps: range) -> None:
        append, row = waiting.append, ROW
        for _ in steps:
            append(dict(row))

    return nullcontext(Arm(loop, _nothing, len(ROW), read_back=lambda: sum(map(len, waiting))))


# Ours.


def _by_step(bus: Any, value: object) -> Loop:
    def loop(steps: range) -> None:
        log, name = bus.log, NAME
        for step in steps:
            log(name, value, step=step)

    return loop


def _by_row(bus: Any) -> Loop:
    def loop(steps: range) -> None:
        log, row = bus.log, ROW
        for step in steps:
            log(row, step=step)

    return loop


def _in_steps(bus: Any) -> Loop:
    def loop(steps: range) -> None:
        log, name, value = bus.log, NAME, VALUE
        for _ in bus.steps(steps):
            log(name, value)

    return loop


def _tensor(bus: Any) -> Loop:
    import torch

    return _by_step(bus, torch.tensor(VALUE))


@contextmanager
def held_back(folder: Path, way: Callable[[Any], Loop], values: int) -> Iterator[Arm]:
    """All five sinks are on, and get everything at the end: the caller is timed alone."""
    settings = {"batch_size": PLENTY, "queue_size": PLENTY, "flush_bytes": 1 << 40}
    settings |= {"queue_bytes": 1 << 40, "flush_secs": 3600}
    with opened_bus(folder, ALL, **settings) as bus:
        loop = way(bus)
        bus.flush(PATIENCE)  # everything has been imported and opened
        yield Arm(loop, _nothing, values)


@contextmanager
def at_work(folder: Path) -> Iterator[Arm]:
    """All five sinks are on and at work; between the values they finish."""
    with opened_bus(folder, ALL) as bus:
        bus.flush(PATIENCE)
        yield Arm(_by_step(bus, VALUE), _nothing, rest=lambda: bus.flush(PATIENCE))


def switched_off() -> Opened:
    """A bus that is disabled."""
    from metricbus import MetricBus

    return nullcontext(
        Arm(_by_step(MetricBus(disabled=True), VALUE), _nothing, values=0, read_back=lambda: 0)
    )


# The peers.


class _Nobody:
    """What stands between a loop and a peer's call, to be taken off."""

    def log(self, name: str, value: float, step: int) -> None:
        pass

    def log_row(self, values: dict[str, float], step: int) -> None:
        pass


def _of_peer(peer: Any, *, together: bool) -> Loop:
    def loop_values(steps: range) -> None:
        log, name, value = peer.log, NAME, VALUE
        for step in steps:
            log(name, value, step)

    def loop_rows(steps: range) -> None:
        log, row = peer.log_row, ROW
        for step in steps:
            log(row, step)

    return loop_rows if together else loop_values


@contextmanager
def of_peer(peer: Peer, *, together: bool) -> Iterator[Arm]:
    """A peer's own call; between the values it writes what it has kept, where it can be told to."""
    yield Arm(
        _of_peer(peer, together=together),
        _of_peer(_Nobody(), together=together),
        len(ROW) if together else 1,
        peer.flush,
        peer.count,
    )
    peer.close()


OURS: dict[str, Callable[[Path], Opened]] = {
    "log": lambda to: held_back(to, lambda bus: _by_step(bus, VALUE), 1),
    "log, mapping": lambda to: held_back(to, _by_row, len(ROW)),
    "log, in steps": lambda to: held_back(to, _in_steps, 1),
    "log, tensor": lambda to: held_back(to, _tensor, 1),
    "log, at work": at_work,
    "log, disabled": lambda to: switched_off(),
    "deque": lambda to: deque_append(),
    "method": lambda to: plain_method(),
    "dict": lambda to: dict_append(),
}
"""Floors and ours by the arm's name; a peer's is its name in `PEERS`, with `: row` for rows."""


def opened(arm: str, folder: Path, uri: str) -> Opened:
    """The arm of this name, in a new folder; `uri` is the server's, for a peer that needs one."""
    if arm in OURS:
        return OURS[arm](folder)
    name, _, how = arm.partition(": ")
    peer = mlflow_peer(folder, uri) if uri else PEERS[name](folder)
    return of_peer(peer, together=how == "row")

"""A real training loop to log in: steps of a wanted length, and how much longer logging makes them.

Each arm is measured beside the bare loop right before and right after it (A X A), so that a machine
that grows slower or faster meanwhile weighs on both alike. An arm logs for a moment before it is
timed, so that what happens in the background is in full swing when the clock starts. When the clock
has stopped, what is still to be done is waited for, so that it takes nothing from the next arm.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.framework.harness import Role

TrainStep = Callable[[], float]
Log = Callable[[int, float], object]

LEAD_IN, TURN, ALONE = 0.25, 0.5, 0.25
"""Seconds that an arm logs untimed, and then timed, and that the bare loop takes in between."""

_SELDOM = 0.35  # of these seconds: of an arm whose effect is great
_SHORT = 1.0  # milliseconds, below which the network is a smaller one
_LEAST_BATCH = 16
_CORRECTIONS = 5
_LOOKS = 30


def make_training(milliseconds: float | None = None) -> TrainStep:
    """A training step on one thread that returns its loss.

    It takes about a quarter of a millisecond, or as long as is asked for, by the size of its batch.
    """
    torch.set_num_threads(1)
    if milliseconds is None:
        return _training(hidden=128, batch=64)
    hidden, batch = (128 if milliseconds < _SHORT else 256), 64
    for _ in range(_CORRECTIONS):
        step = _training(hidden, batch)
        batch = max(_LEAST_BATCH, round(batch * milliseconds / _length_of(step)))
    return _training(hidden, batch)


def _training(hidden: int, batch: int) -> TrainStep:
    layers = torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(batch, 64), torch.randint(10, (batch,))

    def train_step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return train_step


def _length_of(step: TrainStep) -> float:
    """Milliseconds, as a median."""
    seen = []
    for _ in range(_LOOKS):
        start = time.perf_counter()
        step()
        seen.append((time.perf_counter() - start) * 1e3)
    return statistics.median(seen[5:])


def _nothing(*_: object) -> None:
    """Logs nothing, waits for nothing."""


class Arm(NamedTuple):
    """A way to log in a loop: `log(step, loss)`.

    `rest` waits until nothing of it is left to do. An arm whose effect is great is measured
    `seldom`, and for a shorter time.
    """

    name: str
    role: Role
    log: Log = _nothing
    rest: Callable[[], object] = _nothing
    seldom: bool = False


class Loop:
    """A training loop that goes on and on, now with one arm and now with another.

    `steps` counts those that each arm was given. `took` and `alone` have the milliseconds a step of
    all turns that were timed, with each arm and bare. A `scale` below 1 makes all turns shorter.
    """

    def __init__(self, train_step: TrainStep, milliseconds: float, scale: float = 1.0) -> None:
        self.steps: Counter[str] = Counter()
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.alone: list[float] = []
        self._train_step = train_step
        self._steps_a_second = scale * 1e3 / milliseconds
        self._bare = Arm("nothing", "control")
        self._now = 0

    def slowdown(self, arm: Arm, _round: int = 0) -> float:
        """How many times as long a step takes as in the bare loop, right before and after."""
        before = self.alone[-1] if self.alone else self._run_alone()
        part = _SELDOM if arm.seldom else 1.0
        self._run(arm, LEAD_IN * part)
        took = self._run(arm, TURN * part)
        arm.rest()
        self.took[arm.name].append(took)
        return took / statistics.fmean((before, self._run_alone()))

    def _run_alone(self) -> float:
        self._run(self._bare, ALONE / 10)  # what was waited for has left its traces in the caches
        self.alone.append(self._run(self._bare, ALONE))
        return self.alone[-1]

    def _run(self, arm: Arm, seconds: float) -> float:
        """Milliseconds a step, of as many steps as take so long when nothing is logged."""
        steps = max(2, round(seconds * self._steps_a_second))
        log, train_step = arm.log, self._train_step
        start = time.perf_counter()
        for step in range(self._now, self._now + steps):
            log(step, train_step())
        took = time.perf_counter() - start
        self._now += steps
        self.steps[arm.name] += steps
        return took / steps * 1e3

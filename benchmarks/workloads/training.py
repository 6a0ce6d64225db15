"""A real training loop with steps of a given length, and the slowdown that logging causes.

Each arm is measured between two runs of the bare loop (A X A), so that changes of the machine's
speed affect both alike. An arm logs for a moment before it is timed, so that its background work
has started. When the timing ends, the loop waits for the rest of that work, so that it does not
slow down the next arm.
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

LEAD_IN, TURN, BARE_TURN = 0.25, 0.5, 0.25
"""Seconds that an arm logs untimed and then timed, and that the bare loop runs in between."""

_SELDOM_SCALE = 0.35  # shortens the turns of an arm with a large effect
_SHORT_STEP = 1.0  # milliseconds; shorter steps use a smaller network
_MIN_BATCH = 16
_CORRECTIONS = 5
_TIMED_STEPS, _WARM_UP_STEPS = 30, 5


def make_training(milliseconds: float | None = None) -> TrainStep:
    """Return a training step that runs on one thread and returns its loss.

    The batch size is chosen so that a step takes about `milliseconds`. Without it, a step takes
    about a quarter of a millisecond.
    """
    torch.set_num_threads(1)
    if milliseconds is None:
        return _training(hidden=128, batch=64)
    hidden, batch = (128 if milliseconds < _SHORT_STEP else 256), 64
    for _ in range(_CORRECTIONS):
        step = _training(hidden, batch)
        batch = max(_MIN_BATCH, round(batch * milliseconds / _step_milliseconds(step)))
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


def _step_milliseconds(step: TrainStep) -> float:
    """Return the median duration of a step in milliseconds."""
    times = []
    for _ in range(_TIMED_STEPS):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[_WARM_UP_STEPS:])


def _nothing(*_: object) -> None:
    """Do nothing, instead of logging or waiting."""


class Arm(NamedTuple):
    """A way to log in a loop, with `log(step, loss)`.

    `rest` waits until no work is left. An arm with a large effect is measured `seldom`, and for a
    shorter time.
    """

    name: str
    role: Role
    log: Log = _nothing
    rest: Callable[[], object] = _nothing
    seldom: bool = False


class Loop:
    """A training loop that keeps running, with one arm after another.

    `steps` counts the steps of each arm. `milliseconds` has the duration of a step in each arm's
    timed turns, and `bare` that of the bare loop. A `scale` below 1 shortens all turns.
    """

    def __init__(self, train_step: TrainStep, milliseconds: float, scale: float = 1.0) -> None:
        self.steps: Counter[str] = Counter()
        self.milliseconds: defaultdict[str, list[float]] = defaultdict(list)
        self.bare: list[float] = []
        self._train_step = train_step
        self._steps_per_second = scale * 1e3 / milliseconds
        self._bare = Arm("nothing", "control")
        self._step = 0

    def slowdown(self, arm: Arm, _round: int = 0) -> float:
        """Return the duration of a step relative to the bare loop, which runs before and after."""
        before = self.bare[-1] if self.bare else self._run_bare()
        scale = _SELDOM_SCALE if arm.seldom else 1.0
        self._run(arm, LEAD_IN * scale)
        took = self._run(arm, TURN * scale)
        arm.rest()
        self.milliseconds[arm.name].append(took)
        return took / statistics.fmean((before, self._run_bare()))

    def _run_bare(self) -> float:
        # The arm's background work has displaced the loop's data from the caches.
        self._run(self._bare, BARE_TURN / 10)
        self.bare.append(self._run(self._bare, BARE_TURN))
        return self.bare[-1]

    def _run(self, arm: Arm, seconds: float) -> float:
        """Return the milliseconds per step; `seconds` is the duration without logging."""
        steps = max(2, round(seconds * self._steps_per_second))
        log, train_step = arm.log, self._train_step
        start = time.perf_counter()
        for step in range(self._step, self._step + steps):
            log(step, train_step())
        took = time.perf_counter() - start
        self._step += steps
        self.steps[arm.name] += steps
        return took / steps * 1e3

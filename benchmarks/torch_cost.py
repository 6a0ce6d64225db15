"""What watching a network costs, beside what people use today. Run it with `make bench-torch`,
or with `--ours` for what is ours alone.

A network of 40 layers (162 tensors, 672,010 parameters) is trained on one thread. Each case has a
network of its own, and takes its turn in every round; what is printed is the median of the rounds:

* what a step took longer than with nothing logged, on the training's thread;
* the same until all of it was in the journal, or in the backend's files;
* the processor time of this process for it, in all threads.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import wandb
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from metricbus import MetricBus
from metricbus.torch._watch_gradients import watch

ROUNDS = 11
STEPS = 40
FEW = 4  # of what takes long
WIDTH = 128
LAYERS = 40
BATCH = 32


class Training:
    """A network with an optimizer, and its training step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(LAYERS):
            layers += [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self._x, self._y = torch.randn(BATCH, WIDTH), torch.randint(10, (BATCH,))

    def step(self) -> torch.Tensor:
        """One step; returns its loss."""
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self._x), self._y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients by name."""
        named = self.model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}


class Case(NamedTuple):
    """What is done after each training step, and what waits for its rest."""

    name: str
    training: Training
    after: Callable[[torch.Tensor, int], object] = lambda loss, step: None
    rest: Callable[[], object] = lambda: None
    steps: int = STEPS


class Cost(NamedTuple):
    """Milliseconds a step: on the training's thread, with the rest, of the processor."""

    loop: float
    whole: float
    processor: float


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cases = ours(folder) + ([] if "--ours" in sys.argv else theirs(folder))
        costs: dict[str, list[Cost]] = {case.name: [] for case in cases}
        for number in range(ROUNDS + 1):
            for case in cases:
                cost = measured(case, number * case.steps)
                if number:  # the first round warms up
                    costs[case.name].append(cost)
        tell(costs)


def ours(folder: str) -> list[Case]:
    bus = MetricBus(sinks="", dir=folder)

    def log_loss(loss: torch.Tensor, step: int) -> None:
        bus.log("loss", loss, step=step)

    cases = [
        Case("nothing", Training()),
        Case("bus.log(name, loss)", Training(), log_loss, flush(bus)),
    ]
    watches: dict[str, dict[str, Any]] = {
        "watch: histograms": {"every": 1, "norms": False},
        "watch: norms": {"every": 1, "histograms": False},
        "watch: both": {"every": 1},
        "watch: off-interval": {"every": 1_000_000},
        "watch: every=100": {"every": 100},
    }
    for name, options in watches.items():
        training, own = Training(), MetricBus(sinks="", dir=folder)
        watch(own, training.model, **options)
        cases.append(Case(name, training, rest=flush(own)))
    return cases


def flush(bus: MetricBus) -> Callable[[], object]:
    return lambda: bus.flush(60)


def theirs(folder: str) -> list[Case]:
    writer: Any = SummaryWriter(Path(folder) / "writer")
    of_writer, of_numpy, of_histc, of_wandb = (Training() for _ in range(4))
    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
    run.watch(of_wandb.model, log="gradients", log_freq=1)

    def add_all(loss: torch.Tensor, step: int) -> None:
        for name, gradient in of_writer.gradients().items():
            writer.add_histogram(name, gradient, step)

    return [
        Case("wandb.watch", of_wandb, lambda loss, step: run.log({}), steps=FEW),
        Case("SummaryWriter.add_histogram", of_writer, add_all, writer.flush, FEW),
        Case(
            "numpy.histogram alone",
            of_numpy,
            lambda loss, step: [np.histogram(g.numpy(), 64) for g in of_numpy.gradients().values()],
        ),
        Case(
            "torch.histc alone",
            of_histc,
            lambda loss, step: [torch.histc(g, 64) for g in of_histc.gradients().values()],
        ),
    ]


def measured(case: Case, first: int) -> Cost:
    """What some steps cost each."""
    processor, start = time.process_time(), time.perf_counter()
    for step in range(first, first + case.steps):
        case.after(case.training.step(), step)
    looped = time.perf_counter() - start
    case.rest()
    whole, worked = time.perf_counter() - start, time.process_time() - processor
    return Cost(*(1e3 * seconds / case.steps for seconds in (looped, whole, worked)))


def tell(costs: dict[str, list[Cost]]) -> None:
    """A table; each figure is the median of what the rounds had beyond the same with nothing."""
    base = costs.pop("nothing")
    step = statistics.median(cost.loop for cost in base)
    spread = [cost.loop for cost in base]
    print(f"a step with nothing logged: {step:.2f} ms ({min(spread):.2f} to {max(spread):.2f})\n")
    print(f"{'added a step, ms':30} {'the loop':>10} {'with the rest':>14} {'processor':>10}")
    for name, found in costs.items():
        added = [
            statistics.median(
                one[field] - none[field] for one, none in zip(found, base, strict=True)
            )
            for field in range(3)
        ]
        print(f"{name:30} {added[0]:10.2f} {added[1]:14.2f} {added[2]:10.2f}")


if __name__ == "__main__":
    main()

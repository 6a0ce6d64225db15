"""The cost of watching a network, compared with other loggers: `make bench-torch`.

With `--ours`, only metricbus is measure. A network of 40 layers (162 tensors, 672,010 parameters)
is trained on one thread. Each case has a separate network, and all cases take turns in every round.
The table shows, for each case, the median over the rounds of:

* the time added to a step on the training thread, compared with a step that logs nothing;
* the added time until everything is in the journal, or in the backend's files;
* the added processor time of this process, over all threads.
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
FEW_STEPS = 4  # for slow cases
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
        """Run one step and return its loss."""
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self._x), self._y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients by parameter name."""
        named = self.model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}


class Case(NamedTuple):
    """A training, the call after each of its steps, and the call that waits for background work."""

    name: str
    training: Training
    after: Callable[[torch.Tensor, int], object] = lambda loss, step: None
    flush: Callable[[], object] = lambda: None
    steps: int = STEPS


class Cost(NamedTuple):
    """Milliseconds per step: in the loop, with background work, and of processor time."""

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
                cost = measure(case, number * case.steps)
                if number:  # the first round warms up
                    costs[case.name].append(cost)
        print_table(costs)


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
        training, watching_bus = Training(), MetricBus(sinks="", dir=folder)
        watch(watching_bus, training.model, **options)
        cases.append(Case(name, training, flush=flush(watching_bus)))
    return cases


def flush(bus: MetricBus) -> Callable[[], object]:
    return lambda: bus.flush(60)


def theirs(folder: str) -> list[Case]:
    writer: Any = SummaryWriter(Path(folder) / "writer")
    writer_training, numpy_training, histc_training, wandb_training = (Training() for _ in range(4))
    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
    run.watch(wandb_training.model, log="gradients", log_freq=1)

    def add_all(loss: torch.Tensor, step: int) -> None:
        for name, gradient in writer_training.gradients().items():
            writer.add_histogram(name, gradient, step)

    return [
        Case("wandb.watch", wandb_training, lambda loss, step: run.log({}), steps=FEW_STEPS),
        Case("SummaryWriter.add_histogram", writer_training, add_all, writer.flush, FEW_STEPS),
        Case(
            "numpy.histogram alone",
            numpy_training,
            lambda loss, step: [
                np.histogram(g.numpy(), 64) for g in numpy_training.gradients().values()
            ],
        ),
        Case(
            "torch.histc alone",
            histc_training,
            lambda loss, step: [torch.histc(g, 64) for g in histc_training.gradients().values()],
        ),
    ]


def measure(case: Case, first: int) -> Cost:
    """Run the case's steps and return their mean cost."""
    processor, start = time.process_time(), time.perf_counter()
    for step in range(first, first + case.steps):
        case.after(case.training.step(), step)
    loop = time.perf_counter() - start
    case.flush()
    whole, processor = time.perf_counter() - start, time.process_time() - processor
    return Cost(*(1e3 * seconds / case.steps for seconds in (loop, whole, processor)))


def print_table(costs: dict[str, list[Cost]]) -> None:
    """Print a table of medians over the rounds, each minus the cost of a step that logs nothing."""
    base = costs.pop("nothing")
    steps = [cost.loop for cost in base]
    median = statistics.median(steps)
    print(f"step without logging: {median:.2f} ms ({min(steps):.2f} to {max(steps):.2f})\n")
    print(f"{'added per step, ms':30} {'loop':>10} {'with background':>16} {'processor':>10}")
    for name, rounds in costs.items():
        added = [
            statistics.median(
                cost[field] - without[field] for cost, without in zip(rounds, base, strict=True)
            )
            for field in range(3)
        ]
        print(f"{name:30} {added[0]:10.2f} {added[1]:16.2f} {added[2]:10.2f}")


if __name__ == "__main__":
    main()

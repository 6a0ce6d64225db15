"""A real training loop to log in, with steps of a wanted length."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def make_training(milliseconds: float | None = None) -> Callable[[], float]:
    """A training step on one thread that returns its loss.

    It takes about a quarter of a millisecond, or as long as is asked for, by the size of its batch.
    """
    torch.set_num_threads(1)
    if milliseconds is None:
        return _training(hidden=128, batch=64)
    batch = 64
    for _ in range(4):
        step = _training(hidden=256, batch=batch)
        batch = max(16, round(batch * milliseconds / _length_of(step)))
    return _training(hidden=256, batch=batch)


def _training(hidden: int, batch: int) -> Callable[[], float]:
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


def _length_of(step: Callable[[], float]) -> float:
    """Milliseconds, as a median."""
    seen = []
    for _ in range(30):
        start = time.perf_counter()
        step()
        seen.append((time.perf_counter() - start) * 1e3)
    return statistics.median(seen[5:])

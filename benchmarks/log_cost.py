"""What logging costs the caller, beside what people use today. Run it with `make bench`.

Two tables, each measured in one run with its rows interleaved, as medians over rounds:

* the time that one call takes on the caller's thread, while nothing is written in the background
  (for those that have a background), with 20,000 calls a round and their garbage collected alike;
* how much longer a real training loop takes when ten scalars are logged a step, with everything
  that happens in the background counted in.

Absolute times mean nothing beyond the machine; the ratios are what to read.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.loggers import CSVLogger
from torch.utils.tensorboard import SummaryWriter
from training import make_training

from metricbus import MetricBus

CALLS = 20_000
ROUNDS = 9
LOOP_STEPS = 4_000
LOOP_ROUNDS = 5
SCALARS_A_STEP = 10


class Case(NamedTuple):
    """A way to log: `log(step)` logs one value, `rest()` is run after each round, untimed."""

    name: str
    calls: int
    log: Callable[[int], object]
    rest: Callable[[], object]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bus = MetricBus(sinks="csv,tensorboard", dir=folder, flush_secs=60, batch_size=2 * CALLS)
        print_calls(measure_calls(cases(Path(folder), bus)))
        bus.close()
        print_loop(measure_loop(Path(folder)))


def cases(folder: Path, bus: MetricBus) -> list[Case]:
    waiting: deque[object] = deque()
    row = {f"train/m{i}": i / 7 for i in range(20)}
    writer = SummaryWriter(folder / "writer")
    csv_logger = CSVLogger(folder, flush_logs_every_n_steps=10 * CALLS)
    logger = logging.getLogger("benchmark")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.FileHandler(folder / "log.txt"))
    return [
        Case(
            "deque.append((name, value, step))",
            CALLS,
            lambda step: waiting.append(("train/loss", 0.5, step)),
            waiting.clear,
        ),
        Case(
            "MetricBus.log(name, value, step=)",
            CALLS,
            lambda step: bus.log("train/loss", 0.5, step=step),
            bus.flush,
        ),
        Case(
            "MetricBus.log(mapping of 20, step=)",
            CALLS // 20,
            lambda step: bus.log(row, step=step),
            bus.flush,
        ),
        Case(
            "lightning CSVLogger.log_metrics",
            CALLS // 10,
            lambda step: csv_logger.log_metrics({"train/loss": 0.5}, step),
            csv_logger.experiment.metrics.clear,
        ),
        Case(
            "logging.info to a file",
            CALLS // 10,
            lambda step: logger.info("step %d train/loss=%g", step, 0.5),
            lambda: None,
        ),
        Case(
            "SummaryWriter.add_scalar",
            CALLS // 10,
            lambda step: writer.add_scalar("train/loss", 0.5, step),
            writer.flush,
        ),
    ]


def measure_calls(cases: list[Case]) -> dict[str, float]:
    """Nanoseconds a call, less those of an empty one."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    step = 0
    for _ in range(ROUNDS):
        for case in cases:
            log, steps = case.log, range(step, step + case.calls)
            empty = _seconds(_nothing, steps)
            times[case.name].append((_seconds(log, steps) - empty) / case.calls * 1e9)
            case.rest()
            step += case.calls
    return {name: statistics.median(seen) for name, seen in times.items()}


def measure_loop(folder: Path) -> dict[str, float]:
    """Milliseconds a step of a training loop, by what logs in it."""
    train_step = make_training()
    names = [f"train/m{i}" for i in range(SCALARS_A_STEP)]
    journal = MetricBus(sinks="", dir=folder / "journal")
    bus = MetricBus(sinks="csv,tensorboard", dir=folder / "loop")
    writer = SummaryWriter(folder / "loop-writer")

    def log_to_journal(step: int, loss: float) -> None:
        for name in names:
            journal.log(name, loss, step=step)

    def log_to_bus(step: int, loss: float) -> None:
        for name in names:
            bus.log(name, loss, step=step)

    def log_mapping_to_bus(step: int, loss: float) -> None:
        bus.log(dict.fromkeys(names, loss), step=step)

    def log_to_writer(step: int, loss: float) -> None:
        for name in names:
            writer.add_scalar(name, loss, step)

    arms: dict[str, Callable[[int, float], None]] = {
        "nothing": lambda step, loss: None,
        "MetricBus, journal alone": log_to_journal,
        "MetricBus to csv and tensorboard": log_to_bus,
        "the same, one mapping a step": log_mapping_to_bus,
        "SummaryWriter": log_to_writer,
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(LOOP_ROUNDS):
        for name, log in arms.items():
            start = time.perf_counter()
            for i in range(LOOP_STEPS):
                log(round_number * LOOP_STEPS + i, train_step())
            times[name].append((time.perf_counter() - start) / LOOP_STEPS * 1e3)
            journal.flush()
            bus.flush()
            writer.flush()
    journal.close()
    bus.close()
    return {name: statistics.median(seen) for name, seen in times.items()}


def print_calls(times: dict[str, float]) -> None:
    floor, ours = list(times.values())[:2]
    print(f"{'one call, on the caller alone':38} {'ns':>9} {'x deque':>9} {'x ours':>9}")
    for name, nanoseconds in times.items():
        print(f"{name:38} {nanoseconds:9.0f} {nanoseconds / floor:9.1f} {nanoseconds / ours:9.1f}")


def print_loop(times: dict[str, float]) -> None:
    alone = times["nothing"]
    print(f"\n{f'a training step with {SCALARS_A_STEP} scalars':38} {'ms':>9} {'slowdown':>9}")
    for name, milliseconds in times.items():
        print(f"{name:38} {milliseconds:9.3f} {milliseconds / alone:9.2f}")


def _seconds(log: Callable[[int], object], steps: range) -> float:
    start = time.perf_counter()
    for step in steps:
        log(step)
    return time.perf_counter() - start


def _nothing(step: int) -> object:
    return None


if __name__ == "__main__":
    main()

"""Slowdown of a training loop by logging, including all background work.

The arm "no logging" is the bare loop, measured like any other arm. Its deviation from 1.00 is
noise; smaller slowdowns cannot be detected.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.framework.harness import Context, Figure, Result, Target, interleaved
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.services import empty_database
from benchmarks.workloads.own_sinks import DATABASE, VALUES, complete, lines_in
from benchmarks.workloads.training import Arm, Log, Loop, make_training
from metricbus import MetricBus
from metricbus._common.settings import Hosting

BLOCKS, ROUNDS_A_BLOCK = 3, 2
QUICK_SCALE = 0.1  # scales the duration of the turns in a quick run
CORES = 2
CLOSE_TIMEOUT = 120.0  # seconds

NO_LOGGING = "no logging"
SINGLE, MAPPING = "metricbus, one call per scalar", "metricbus, one mapping per step"
THREAD = "metricbus, one call per scalar, delivery=thread"

BUSES: Sequence[Hosting] = ("auto", "thread")
WARM_UP = 1  # values that each bus logs before the measurement

TEXT = """\
The duration of a step with logging, relative to the bare loop, on {cores} cores. The loop is a real
PyTorch training on one thread. The duration includes the effect of all background work. Each turn
of an arm runs between two turns of the bare loop ({bare:.3f} ms per step) and is compared with
them; it is timed once the background work has reached a steady state. "{no_logging}" is the bare
loop measured like an arm and shows the noise. The backends are read back after the last turn, for
all metricbus arms together.\
"""


class Training(NamedTuple):
    """A training: the length of its steps, what it logs, and the largest accepted slowdown."""

    milliseconds: float
    scalars: int
    limit: float
    where: str = "all five backends"
    sinks: Sequence[str] = ("logging", "csv", "tensorboard", "wandb?mode=offline", "mlflow")
    peers: Sequence[str] = (
        "logging",
        "Lightning CSVLogger",
        "SummaryWriter",
        "wandb, one mapping per call",
        "mlflow, sqlite, log_batch",
    )
    peers_name: str = "the five backends' own APIs"

    @property
    def names(self) -> list[str]:
        """The names of the scalars."""
        return [f"train/metric{i}" for i in range(self.scalars)]


SHORT = Training(
    0.26,
    scalars=10,
    limit=1.05,
    where="CSV and TensorBoard",
    sinks=["csv", "tensorboard"],
    peers=["SummaryWriter"],
    peers_name="SummaryWriter.add_scalar",
)
MIDDLE = Training(3.5, scalars=20, limit=1.03)
LONG = Training(22.0, scalars=20, limit=1.01)


def measure(context: Context) -> list[Result]:
    """Measure each length of a step; a quick run measures one length with all backends."""
    with two_cores() as cores:
        trainings = [MIDDLE] if context.quick else [SHORT, MIDDLE, LONG]
        return [measure_training(context, training, cores) for training in trainings]


@contextmanager
def two_cores() -> Iterator[int]:
    """Restrict this thread and its children to two cores; yield the number of cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    chosen = sorted(before)[:CORES]
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)


def measure_training(context: Context, training: Training, cores: int) -> Result:
    """Measure the slowdown of each arm; raise unless everything is read back."""
    context.log(f"steps of {training.milliseconds} ms with {training.scalars} scalars")
    folder = context.new_folder(f"loop-{training.milliseconds}")
    step = make_training(training.milliseconds)
    loop = Loop(step, training.milliseconds, QUICK_SCALE if context.quick else 1.0)
    with ExitStack() as stack:
        ours = open_buses(training, folder, stack)
        peers, peers_arm = open_peers(training, context, stack)
        arms = [Arm(NO_LOGGING, "floor"), *ours, peers_arm]
        samples = slowdowns(loop, arms, context.pick(BLOCKS, 1), context.pick(ROUNDS_A_BLOCK, 1))
    logged = {arm.name: training.scalars * loop.steps[arm.name] for arm in arms}
    expected = WARM_UP * len(BUSES) + sum(logged[arm.name] for arm in ours)
    texts = dict.fromkeys((arm.name for arm in ours), read_back(training, folder, expected))
    for name, peer in peers.items():
        texts[peers_arm.name] = complete(name, peer.count, logged[peers_arm.name])
    figures = [figure_of(arm, samples[arm.name], loop, texts.get(arm.name, "")) for arm in arms]
    return result_of(training, figures, loop, cores)


def open_buses(training: Training, folder: Path, stack: ExitStack) -> list[Arm]:
    """Open a bus with default delivery and one with delivery threads; return their arms.

    Both buses raise if anything is not delivered.
    """
    stack.enter_context(lines_in(folder))
    if "mlflow" in training.sinks:
        empty_database(folder / DATABASE)
    buses = []
    for delivery in BUSES:
        bus = MetricBus(
            sinks=training.sinks,
            dir=folder,
            delivery=delivery,
            close_timeout=CLOSE_TIMEOUT,
            strict=True,
        )
        buses.append(stack.enter_context(bus))
        bus.log("warm_up", 1.0, step=0)
        bus.flush()  # afterwards, all backends are imported and open
    default, threads = buses
    return [
        Arm(SINGLE, "ours", log_single_values(default, training.names), default.flush),
        Arm(MAPPING, "ours", log_mapping(default, training.names), default.flush),
        Arm(THREAD, "ours", log_single_values(threads, training.names), threads.flush, seldom=True),
    ]


def log_single_values(bus: MetricBus, names: Sequence[str]) -> Log:
    """Return a function that logs the scalars of a step one by one."""

    def log(step: int, loss: float) -> None:
        for name in names:
            bus.log(name, loss, step=step)

    return log


def log_mapping(bus: MetricBus, names: Sequence[str]) -> Log:
    """Return a function that logs the scalars of a step in one call."""
    return lambda step, loss: bus.log(dict.fromkeys(names, loss), step=step)


def open_peers(
    training: Training, context: Context, stack: ExitStack
) -> tuple[dict[str, Peer], Arm]:
    """Open the backends' own loggers; return them with the arm that calls all of them."""
    peers = {name: PEERS[name](context.new_folder("peer")) for name in training.peers}
    for peer in peers.values():
        stack.callback(peer.close)

    def log(step: int, loss: float) -> None:
        values = dict.fromkeys(training.names, loss)
        for peer in peers.values():
            peer.log_row(values, step)

    def flush() -> None:
        for peer in peers.values():
            peer.flush()

    return peers, Arm(training.peers_name, "peer", log, flush, seldom=True)


def read_back(training: Training, folder: Path, logged: int) -> str:
    """Count the values of both buses in every backend; raise if any are missing."""
    kinds = [sink.partition("?")[0] for sink in training.sinks]
    (text,) = {
        complete(f"metricbus to {kind}", partial(VALUES[kind], folder), logged) for kind in kinds
    }
    return text


def slowdowns(loop: Loop, arms: Sequence[Arm], blocks: int, rounds: int) -> dict[str, list[float]]:
    """Measure the slowdowns of all arms.

    Each block has several rounds of most arms, and one round of the arms with a large effect.
    """
    slowdowns_by_arm: defaultdict[str, list[float]] = defaultdict(list)
    often = {arm.name: partial(loop.slowdown, arm) for arm in arms if not arm.seldom}
    seldom = {arm.name: partial(loop.slowdown, arm) for arm in arms if arm.seldom}
    for _ in range(blocks):
        for name, samples in (interleaved(often, rounds) | interleaved(seldom, 1)).items():
            slowdowns_by_arm[name] += samples
    return slowdowns_by_arm


def figure_of(arm: Arm, samples: list[float], loop: Loop, read_back: str) -> Figure:
    """Return the slowdowns of an arm, with a note on their interquartile range."""
    note = f"{statistics.median(loop.milliseconds[arm.name]):.3f} ms per step"
    if len(samples) > 1:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        note += f"; interquartile range {low:.3f} to {high:.3f}"
    return Figure(arm.name, samples, arm.role, read_back=read_back, note=note)


def result_of(training: Training, figures: list[Figure], loop: Loop, cores: int) -> Result:
    """Return the table of one training, with targets for the default bus."""
    bare = statistics.median(loop.bare)
    title = (
        f"Training loop with {training.milliseconds} ms steps, logging {training.scalars} scalars "
        f"to {training.where}"
    )
    return Result(
        id=f"loop-{training.milliseconds}ms",
        title=title,
        text=TEXT.format(cores=cores, bare=bare, no_logging=NO_LOGGING),
        unit="x",
        figures=figures,
        targets=[
            Target(
                f"slowdown with {training.milliseconds} ms steps: {figure.name}",
                figure.median,
                training.limit,
            )
            for figure in figures
            if figure.name in (SINGLE, MAPPING)
        ],
    )

"""How much longer a training loop takes when it logs, with all that happens in the background.

"Nothing, again" is the bare loop measured as if it were an arm: what it shows beside 1.00 is noise,
and a slowdown smaller than that noise is none that could be seen.
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
QUICK = 0.1  # of the seconds of a full run
CORES = 2
LONGEST_WAIT = 120.0  # seconds

AGAIN = "nothing, again"
EACH, MAPPING = "metricbus, a call a scalar", "metricbus, one mapping a step"
THREAD = "metricbus, a call a scalar, delivery=thread"

BUSES: Sequence[Hosting] = ("auto", "thread")
READY = 1  # values that a bus logs before it is timed

TEXT = """\
How many times as long a step of a real PyTorch training on one thread takes when it logs, on
{cores} cores. Everything that happens in the background meanwhile is counted in. Each turn stands
between two turns of the bare loop ({alone:.3f} ms a step) and is compared to these; it is timed
once what works in the background is in full swing. "{again}" is the bare loop measured like an arm:
it shows what can be told from noise. What each backend has was read back after the last turn, for
all arms of metricbus together.\
"""


class Training(NamedTuple):
    """A training, what it logs to where, and how many times as long it may take at most."""

    milliseconds: float
    scalars: int
    limit: float
    where: str = "all five backends"
    sinks: Sequence[str] = ("logging", "csv", "tensorboard", "wandb?mode=offline", "mlflow")
    peers: Sequence[str] = (
        "logging",
        "Lightning CSVLogger",
        "SummaryWriter",
        "wandb, a mapping a call",
        "mlflow, sqlite, log_batch",
    )
    by_hand: str = "the five backends' own calls"

    @property
    def names(self) -> list[str]:
        """What the scalars are called."""
        return [f"train/metric{i}" for i in range(self.scalars)]


SHORT = Training(
    0.26,
    scalars=10,
    limit=1.05,
    where="CSV and TensorBoard",
    sinks=["csv", "tensorboard"],
    peers=["SummaryWriter"],
    by_hand="SummaryWriter.add_scalar",
)
MIDDLE = Training(3.5, scalars=20, limit=1.03)
LONG = Training(22.0, scalars=20, limit=1.01)


def measure(context: Context) -> list[Result]:
    """One result for each length of a step; a quick run has one that logs everywhere."""
    with two_cores() as cores:
        trainings = [MIDDLE] if context.quick else [SHORT, MIDDLE, LONG]
        return [measure_training(context, training, cores) for training in trainings]


@contextmanager
def two_cores() -> Iterator[int]:
    """Has two cores at most for this thread and for what it starts; says how many there are."""
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
    """The slowdown by each arm, once everything that was logged has been found again."""
    context.tell(f"steps of {training.milliseconds} ms with {training.scalars} scalars")
    place = context.place(f"loop-{training.milliseconds}")
    step = make_training(training.milliseconds)
    loop = Loop(step, training.milliseconds, QUICK if context.quick else 1.0)
    with ExitStack() as stack:
        ours = open_buses(training, place, stack)
        peers, by_hand = open_peers(training, context, stack)
        arms = [Arm(AGAIN, "floor"), *ours, by_hand]
        seen = slowdowns(loop, arms, context.pick(BLOCKS, 1), context.pick(ROUNDS_A_BLOCK, 1))
    logged = {arm.name: training.scalars * loop.steps[arm.name] for arm in arms}
    found = read_back(training, place, READY * len(BUSES) + sum(logged[arm.name] for arm in ours))
    complete_by = dict.fromkeys((arm.name for arm in ours), found)
    for name, peer in peers.items():
        complete_by[by_hand.name] = complete(name, peer.count, logged[by_hand.name])
    figures = [figure_of(arm, seen[arm.name], loop, complete_by.get(arm.name, "")) for arm in arms]
    return result_of(training, figures, loop, cores)


def open_buses(training: Training, place: Path, stack: ExitStack) -> list[Arm]:
    """The arms of a bus as it is by default, and of one whose sinks are threads of the training.

    Both buses raise if anything is not delivered.
    """
    stack.enter_context(lines_in(place))
    if "mlflow" in training.sinks:
        empty_database(place / DATABASE)
    buses = []
    for delivery in BUSES:
        bus = MetricBus(
            sinks=training.sinks,
            dir=place,
            delivery=delivery,
            close_timeout=LONGEST_WAIT,
            strict=True,
        )
        buses.append(stack.enter_context(bus))
        bus.log("ready", 1.0, step=0)
        bus.flush()  # from here on everything is imported, and open
    default, threads = buses
    return [
        Arm(EACH, "ours", log_each(default, training.names), default.flush),
        Arm(MAPPING, "ours", log_mapping(default, training.names), default.flush),
        Arm(THREAD, "ours", log_each(threads, training.names), threads.flush, seldom=True),
    ]


def log_each(bus: MetricBus, names: Sequence[str]) -> Log:
    """Logs a step's scalars one by one."""

    def log(step: int, loss: float) -> None:
        for name in names:
            bus.log(name, loss, step=step)

    return log


def log_mapping(bus: MetricBus, names: Sequence[str]) -> Log:
    """Logs a step's scalars by one call."""
    return lambda step, loss: bus.log(dict.fromkeys(names, loss), step=step)


def open_peers(
    training: Training, context: Context, stack: ExitStack
) -> tuple[dict[str, Peer], Arm]:
    """The backends' own loggers, and the arm that calls them all at each step."""
    peers = {name: PEERS[name](context.place("peer")) for name in training.peers}
    for peer in peers.values():
        stack.callback(peer.close)

    def log(step: int, loss: float) -> None:
        values = dict.fromkeys(training.names, loss)
        for peer in peers.values():
            peer.log_row(values, step)

    def flush() -> None:
        for peer in peers.values():
            peer.flush()

    return peers, Arm(training.by_hand, "peer", log, flush, seldom=True)


def read_back(training: Training, place: Path, logged: int) -> str:
    """What both buses together have brought into every backend; raises unless it is all."""
    kinds = [sink.partition("?")[0] for sink in training.sinks]
    (found,) = {
        complete(f"metricbus to {kind}", partial(VALUES[kind], place), logged) for kind in kinds
    }
    return found


def slowdowns(loop: Loop, arms: Sequence[Arm], blocks: int, rounds: int) -> dict[str, list[float]]:
    """Those of each arm; a block has many rounds of most arms, and one of those of great effect."""
    seen: defaultdict[str, list[float]] = defaultdict(list)
    often = {arm.name: partial(loop.slowdown, arm) for arm in arms if not arm.seldom}
    seldom = {arm.name: partial(loop.slowdown, arm) for arm in arms if arm.seldom}
    for _ in range(blocks):
        for name, samples in (interleaved(often, rounds) | interleaved(seldom, 1)).items():
            seen[name] += samples
    return seen


def figure_of(arm: Arm, samples: list[float], loop: Loop, complete: str) -> Figure:
    """The arm's slowdowns, with the middle half of them."""
    note = f"{statistics.median(loop.took[arm.name]):.3f} ms a step"
    if len(samples) > 1:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        note += f"; middle half {low:.3f} to {high:.3f}"
    return Figure(arm.name, samples, arm.role, complete=complete, note=note)


def result_of(training: Training, figures: list[Figure], loop: Loop, cores: int) -> Result:
    """The table of one training, with what was aimed at for the default bus."""
    alone = statistics.median(loop.alone)
    title = (
        f"A training loop of {training.milliseconds} ms a step that logs {training.scalars} "
        f"scalars to {training.where}"
    )
    return Result(
        id=f"loop-{training.milliseconds}ms",
        title=title,
        text=TEXT.format(cores=cores, alone=alone, again=AGAIN),
        unit="x",
        figures=figures,
        targets=[
            Target(
                f"Slowdown, {training.milliseconds} ms a step: {one.name}",
                one.median,
                training.limit,
            )
            for one in figures
            if one.name in (EACH, MAPPING)
        ],
    )

"""How long single calls of `log()` take at a steady rate: the tail of their distribution.

Every arm lives in a process of its own: it opens what it needs, is measured in turns, and rests
when all that it logged has arrived, while the others are measured. The loop is the same in all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from benchmarks.framework.harness import Context, Figure, Result, Target, Unit, interleaved, ratio
from benchmarks.framework.spawned import ANSWERS_WITHIN, Worker
from benchmarks.workloads.latency_arms import (
    BUSY,
    HANGS_HERE,
    HANGS_THERE,
    IDLE,
    PROCESS,
    THREADS,
    Arm,
    all_arms,
    all_sinks,
)
from benchmarks.workloads.latency_worker import (
    TAILS,
    Rates,
    Turn,
    close_arm,
    collectors_rates,
    flood,
    open_arm,
    take_turn,
)

_UNIT: Unit = "µs"
_HUNDREDTH, _THOUSANDTH = TAILS.index(0.01), TAILS.index(0.001)
_TEXT = """\
Each arm has a process of its own and runs the same loop: 20 values a step, each call timed by
itself, the wait for the next step spent busily in Python. That is the hardest case: such a loop
never lets go of the interpreter by itself; CPython takes it away after 5 ms if another thread asks.
The sinks are {sinks}; where one hangs, it stands in for MLflow, or is MLflow's.

The rate is {rate:,.0f} calls a second, half of what the collector sustains beside a loop that is
busy in Python all the time ({busy:,.0f} values/s, the journal alone; {in_all:,.0f} where the loop
waits for it when the queue is full). A peer that does not sustain this is measured at half of its
own rate. Between rounds, everything is delivered. Garbage collection is on in all arms; what is
imported is frozen before each round. At the end, everything is read back.

The controls make the floor's call, which is shorter than ours: fewer of theirs are cut in two when
another thread takes over."""


class Seen(NamedTuple):
    """What the rounds gave of one arm."""

    arm: Arm
    rate: float
    turns: list[Turn]
    complete: str

    def figure(self, samples: list[float], at: float | None = None) -> Figure:
        """The samples, with what the kernel took away meanwhile."""
        switches = sum(turn.switches for turn in self.turns)
        note = f"{self.rate:,.0f} calls a second; {switches} involuntary switches"
        collections = sum(turn.collections for turn in self.turns)
        note += f", {collections} garbage collections"
        return Figure(self.arm.name, samples, self.arm.role, at, self.complete, note)


def measure(context: Context) -> list[Result]:
    rates = _measure_rates(context)
    context.tell(
        f"the collector sustains {rates.beside_busy:,.0f} values/s beside a loop that is busy in "
        f"Python, {rates.in_all:,.0f} where the loop waits for it"
    )
    seen = _measure_arms(context, rates.beside_busy / 2)
    return [
        _calls(seen, rates, all_sinks(quick=context.quick)),
        _greatest(seen),
        _tails(seen),
        _steps(seen),
    ]


def _measure_rates(context: Context) -> Rates:
    calls = context.pick(100_000, 10_000)
    with Worker() as worker:
        place = context.place("rates")
        found = [worker.do(collectors_rates, place, calls) for _ in range(context.pick(3, 1))]
    return Rates(*map(statistics.median, zip(*found, strict=True)))


def _measure_arms(context: Context, rate: float) -> list[Seen]:
    arms = all_arms(quick=context.quick)
    calls = context.pick(24_000, 400)
    with ExitStack() as exits:
        workers = {arm.name: exits.enter_context(Worker()) for arm in arms}
        opening = [workers[arm.name].begin(open_arm, arm, context.place("latency")) for arm in arms]
        for one in opening:
            one.result(ANSWERS_WITHIN)
        rates = dict.fromkeys(workers, rate)
        for arm in arms:
            if arm.role == "peer":
                own = workers[arm.name].do(flood, context.pick(5_000, 200))
                rates[arm.name] = min(rate, own / 2)
        turns: dict[str, list[Turn]] = {arm.name: [] for arm in arms}

        def measure_one(name: str, _: int) -> float:
            a_second = rates[name]
            turns[name].append(workers[name].do(take_turn, a_second, min(calls, int(a_second))))
            return turns[name][-1].took[-1]

        interleaved({name: partial(measure_one, name) for name in workers}, context.pick(3, 2))
        context.tell("reading back")
        closing = {name: worker.begin(close_arm) for name, worker in workers.items()}
        complete = {name: one.result(ANSWERS_WITHIN) for name, one in closing.items()}
    return [Seen(arm, rates[arm.name], turns[arm.name], complete[arm.name]) for arm in arms]


# What is told


def _calls(seen: list[Seen], rates: Rates, sinks: str) -> Result:
    figures = _figures(seen, lambda turn: turn.took[_THOUSANDTH])
    return Result(
        "latency",
        "One call in a thousand takes longer than this",
        _TEXT.format(sinks=sinks, rate=seen[0].rate, busy=rates.beside_busy, in_all=rates.in_all),
        _UNIT,
        figures,
        _targets(figures, "p99.9 of a call"),
        beside=BUSY,
    )


def _greatest(seen: list[Seen]) -> Result:
    figures = _figures(seen, lambda turn: turn.took[-1])
    return Result(
        "latency-max",
        "The longest call of a round",
        "Of the same calls. A single number of many thousands: what the kernel takes away shows "
        "here first, in every row.",
        _UNIT,
        figures,
        _targets(figures, "the longest call"),
        beside=BUSY,
    )


def _steps(seen: list[Seen]) -> Result:
    figures = _figures(seen, lambda turn: turn.late[_HUNDREDTH])
    return Result(
        "latency-steps",
        "One step in a hundred is done later than this after it was due",
        "The same rounds, seen from the loop: from when a step's 20 calls were due until the last "
        "of them returned. It counts what other threads took between the calls, too, and what was "
        "then to be made up for. (A time per call alone would leave that out.)",
        _UNIT,
        figures,
        beside=BUSY,
    )


def _tails(seen: list[Seen]) -> Result:
    """What share of the calls takes longer than how long."""
    return Result(
        "latency-tail",
        "How many calls take how long",
        "The tail of the distribution: a point says which share of an arm's calls takes longer. "
        "The median of the rounds.",
        _UNIT,
        [
            one.figure([turn.took[i] / 1e3 for turn in one.turns], at=share)
            for one in seen
            for i, share in enumerate(TAILS)
        ],
        chart="lines",
        x="share of the calls that take longer",
    )


def _figures(seen: list[Seen], of: Callable[[Turn], int]) -> list[Figure]:
    return [one.figure([of(turn) / 1e3 for turn in one.turns]) for one in seen]


def _targets(figures: list[Figure], what: str) -> list[Target]:
    """No worse than beside an idle thread where delivery has a process, else than a busy one."""
    by_name = {figure.name: figure for figure in figures}
    compared = {PROCESS: IDLE, HANGS_HERE: IDLE, HANGS_THERE: IDLE, THREADS: BUSY}
    pairs = [(ours, BUSY) for ours in compared] + [
        (ours, beside) for ours, beside in compared.items() if beside == IDLE
    ]
    return [
        Target(f"{what}, {ours}: to {beside}", ratio(by_name[ours], by_name[beside]), 1.0)
        for ours, beside in pairs
    ]

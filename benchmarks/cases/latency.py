"""Latency of single calls of `log()` at a constant rate, including the tail of the distribution.

Each arm has a worker process that opens the arm and runs the same loop in its turns. Between turns,
it waits until everything is delivered, and is then idle while the other arms are measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from benchmarks.framework.harness import Context, Figure, Result, Target, Unit, interleaved, ratio
from benchmarks.framework.spawned import CALL_TIMEOUT, Worker
from benchmarks.workloads.latency_arms import (
    BUSY,
    HANGING_SERVER,
    HANGING_SINK,
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
    collector_rates,
    measure_full_speed,
    open_arm,
    take_turn,
)

_UNIT: Unit = "µs"
_HUNDREDTH, _THOUSANDTH = TAILS.index(0.01), TAILS.index(0.001)
_TEXT = """\
The value that one call in a thousand exceeds. Each arm has a process of its own and runs the same
loop: 20 values per step, each call timed separately, with a busy wait in Python until the next
step. This is the most demanding case, because such a loop never releases the GIL voluntarily;
another thread that requests it has to wait for up to 5 ms. The sinks are {sinks}. In the arms with
a fault, a hanging sink replaces MLflow, or the MLflow server hangs.

The rate is {rate:,.0f} calls per second: half the rate that the collector sustains next to a loop
that never waits ({busy:,.0f} values/s with the journal only; {waiting:,.0f} values/s if the loop
waits while the queue is full). A peer that does not sustain this rate is measured at half its own
maximum. Everything is delivered between rounds. Garbage collection is enabled in all arms, and
imported objects are frozen before each round. Everything is read back at the end.

The controls make the same call as the floor. It is shorter than a call of `log()`, so thread
switches interrupt fewer of these calls."""


class ArmResult(NamedTuple):
    """Results of one arm over all rounds; `rate` is in calls per second."""

    arm: Arm
    rate: float
    turns: list[Turn]
    read_back: str

    def figure(self, samples: list[float], x: float | None = None) -> Figure:
        """Return the samples with a note on context switches and garbage collections."""
        switches = sum(turn.switches for turn in self.turns)
        collections = sum(turn.collections for turn in self.turns)
        note = (
            f"{self.rate:,.0f} calls per second; {switches:,} involuntary context switches; "
            f"{collections:,} garbage collections"
        )
        return Figure(self.arm.name, samples, self.arm.role, x, self.read_back, note)


def measure(context: Context) -> list[Result]:
    rates = _measure_rates(context)
    context.log(
        f"the collector sustains {rates.with_busy_loop:,.0f} values/s next to a busy loop, and "
        f"{rates.with_waiting_loop:,.0f} values/s if the loop waits for the queue"
    )
    results = _measure_arms(context, rates.with_busy_loop / 2)
    return [
        _percentile_table(results, rates, all_sinks(quick=context.quick)),
        _maximum_table(results),
        _tail_table(results),
        _steps_table(results),
    ]


def _measure_rates(context: Context) -> Rates:
    calls = context.pick(100_000, 10_000)
    with Worker() as worker:
        folder = context.new_folder("rates")
        found = [worker.call(collector_rates, folder, calls) for _ in range(context.pick(3, 1))]
    return Rates(*map(statistics.median, zip(*found, strict=True)))


def _measure_arms(context: Context, rate: float) -> list[ArmResult]:
    arms = all_arms(quick=context.quick)
    calls = context.pick(24_000, 400)
    with ExitStack() as exits:
        workers = {arm.name: exits.enter_context(Worker()) for arm in arms}
        opening = [
            workers[arm.name].submit(open_arm, arm, context.new_folder("latency")) for arm in arms
        ]
        for future in opening:
            future.result(CALL_TIMEOUT)
        rates = dict.fromkeys(workers, rate)
        for arm in arms:
            if arm.role == "peer":
                maximum = workers[arm.name].call(measure_full_speed, context.pick(5_000, 200))
                rates[arm.name] = min(rate, maximum / 2)
        turns: dict[str, list[Turn]] = {arm.name: [] for arm in arms}

        def measure_turn(name: str, _: int) -> float:
            arm_rate = rates[name]
            turns[name].append(workers[name].call(take_turn, arm_rate, min(calls, int(arm_rate))))
            return turns[name][-1].durations[-1]

        interleaved({name: partial(measure_turn, name) for name in workers}, context.pick(3, 2))
        context.log("reading back")
        closing = {name: worker.submit(close_arm) for name, worker in workers.items()}
        read_back = {name: future.result(CALL_TIMEOUT) for name, future in closing.items()}
    return [ArmResult(arm, rates[arm.name], turns[arm.name], read_back[arm.name]) for arm in arms]


# Tables


def _percentile_table(results: list[ArmResult], rates: Rates, sinks: str) -> Result:
    figures = _figures(results, lambda turn: turn.durations[_THOUSANDTH])
    return Result(
        "latency",
        "Call latency, 99.9th percentile",
        _TEXT.format(
            sinks=sinks,
            rate=results[0].rate,
            busy=rates.with_busy_loop,
            waiting=rates.with_waiting_loop,
        ),
        _UNIT,
        figures,
        _targets(figures, "p99.9 latency"),
        baseline=BUSY,
    )


def _maximum_table(results: list[ArmResult]) -> Result:
    figures = _figures(results, lambda turn: turn.durations[-1])
    return Result(
        "latency-max",
        "Call latency, maximum of a round",
        "The longest of the same calls. A maximum is one of many thousands of values, so "
        "preemption by the kernel is visible in every row.",
        _UNIT,
        figures,
        _targets(figures, "maximum latency"),
        baseline=BUSY,
    )


def _steps_table(results: list[ArmResult]) -> Result:
    figures = _figures(results, lambda turn: turn.lateness[_HUNDREDTH])
    return Result(
        "latency-steps",
        "Step latency, 99th percentile",
        "The same rounds, per step: the time from when a step was due until the last of its 20 "
        "calls returned. One step in a hundred exceeds this value. Unlike the latency of calls, it "
        "includes the time that other threads take between calls, and delays caused by earlier "
        "steps.",
        _UNIT,
        figures,
        baseline=BUSY,
    )


def _tail_table(results: list[ArmResult]) -> Result:
    """Return the latency that each fraction of the calls exceeds."""
    return Result(
        "latency-tail",
        "Call latency, tail of the distribution",
        "Each point shows the latency that a fraction of an arm's calls exceeds, as a median of "
        "the rounds.",
        _UNIT,
        [
            result.figure([turn.durations[i] / 1e3 for turn in result.turns], x=fraction)
            for result in results
            for i, fraction in enumerate(TAILS)
        ],
        chart="lines",
        x_label="fraction of calls that take longer",
    )


def _figures(results: list[ArmResult], nanoseconds: Callable[[Turn], int]) -> list[Figure]:
    return [result.figure([nanoseconds(turn) / 1e3 for turn in result.turns]) for result in results]


def _targets(figures: list[Figure], quantity: str) -> list[Target]:
    """Return the targets: all arms relative to the busy thread, some also to the idle thread.

    Arms with a delivery process should not be slower than a deque next to an idle thread.
    """
    by_name = {figure.name: figure for figure in figures}
    compared = {PROCESS: IDLE, HANGING_SINK: IDLE, HANGING_SERVER: IDLE, THREADS: BUSY}
    pairs = [(ours, BUSY) for ours in compared] + [
        (ours, baseline) for ours, baseline in compared.items() if baseline == IDLE
    ]
    return [
        Target(
            f"{quantity}: {ours}, relative to {baseline}",
            ratio(by_name[ours], by_name[baseline]),
            1.0,
        )
        for ours, baseline in pairs
    ]

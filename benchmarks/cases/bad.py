"""What people fear: a sink that is down, a slow disk, many names, pictures, NaN, a full queue.

Every run has a process of its own, whose memory is watched from outside. A trouble is compared with
the same loop without it. The counts of every run must add up, and are read back.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.framework.harness import Context, Figure, Result, interleaved, ratios
from benchmarks.framework.spawned import Worker
from benchmarks.workloads import bad_worker
from benchmarks.workloads.bad_runs import DISK, NAMES, PICTURE, SHORT_QUEUE, STEP_SECS, Plan, plans
from metricbus import Report

LOOK_EVERY = 0.005


class Outcome(NamedTuple):
    """What one run gave; memory is in bytes beyond what the process had before the loop."""

    rate: float
    peak: int
    left: int
    report: Report


def measure(context: Context) -> list[Result]:
    every = plans(context)
    outcomes: dict[str, list[Outcome]] = {plan.name: [] for plan in every}

    def run(plan: Plan, number: int) -> float:
        context.tell(f"round {number + 1}: {plan.name}")
        outcomes[plan.name].append(_run(plan, context.place("bad")))
        return outcomes[plan.name][-1].rate

    interleaved({plan.name: partial(run, plan) for plan in every}, rounds=1)
    rates = [_figure(plan, outcomes[plan.name], _rate) for plan in every]
    return [_slowdown(every, rates), _throughput(rates), _memory(every, outcomes)]


def _run(plan: Plan, folder: Path) -> Outcome:
    with Worker() as worker:
        process = worker.process
        worker.do(bad_worker.open_run, plan, folder)
        before = process.memory_info().rss
        looping = worker.begin(bad_worker.log_all)
        peak = _peak(process, looping)
        closing = worker.begin(bad_worker.close_run)
        peak = max(peak, _peak(process, closing), left := process.memory_info().rss)
        worker.do(bad_worker.check_run)
        return Outcome(looping.result(), peak - before, left - before, closing.result())


def _peak(process: psutil.Process, work: Future[Any]) -> int:
    """The most memory that is seen until the work is done."""
    peak = process.memory_info().rss
    while not work.done():
        peak = max(peak, process.memory_info().rss)
        time.sleep(LOOK_EVERY)
    work.result()
    return peak


# What is told


def _rate(outcome: Outcome) -> float:
    return outcome.rate


def _peak_mb(outcome: Outcome) -> float:
    return outcome.peak / 1e6


def _figure(plan: Plan, seen: list[Outcome], sample: Callable[[Outcome], float]) -> Figure:
    report = seen[-1].report
    return Figure(
        plan.name,
        [sample(one) for one in seen],
        "ours" if plan.beside else "floor",
        complete=f"{report.logged:,} of {report.logged:,}",
        note=_counts(report),
    )


def _counts(report: Report) -> str:
    """Where the last round's values are."""
    words = [f"{report.journalled:,} journalled"]
    if report.dropped:
        words.append(f"{report.dropped:,} dropped")
    for name, sink in report.sinks.items():
        kind = name.partition("+")[0].partition(":")[0]
        words.append(
            f"{kind}: {sink.pending:,} pending" if sink.pending else f"{kind}: {sink.delivered:,}"
        )
    return "; ".join(words)


def _slowdown(every: list[Plan], rates: list[Figure]) -> Result:
    by_name = {figure.name: figure for figure in rates}
    return Result(
        "bad",
        "How many times as long the loop takes when something is wrong",
        _TEXT,
        "x",
        [
            Figure(
                plan.name,
                ratios(by_name[plan.beside], by_name[plan.name]),
                "ours",
                complete=by_name[plan.name].complete,
                note=f"beside: {plan.beside}; {by_name[plan.name].note}",
            )
            for plan in every
            if plan.beside
        ],
    )


def _throughput(rates: list[Figure]) -> Result:
    return Result(
        "bad-throughput",
        "What the loop logs meanwhile",
        "The same runs, in values a second as the training sees it, those that are dropped "
        "included. The floors are the loops without trouble. Where pictures are logged, a step has "
        f"{len(NAMES)} numbers and one picture.",
        "values/s",
        rates,
        better="more",
    )


def _memory(every: list[Plan], outcomes: dict[str, list[Outcome]]) -> Result:
    figures = []
    for plan in every:
        seen = outcomes[plan.name]
        left = statistics.median(one.left for one in seen) / 1e6
        figure = _figure(plan, seen, _peak_mb)
        figures.append(
            Figure(plan.name, figure.samples, figure.role, note=f"{left:.1f} MB at the end")
        )
    return Result(
        "bad-memory",
        "What the training process takes in memory at most",
        "The same runs: the most that the process had from the beginning of the loop until the "
        "end of the run (resident memory, looked at from outside every "
        f"{LOOK_EVERY * 1e3:.0f} ms), beyond what it had before the loop.",
        "MB",
        figures,
    )


_TEXT = f"""\
Each run logs as fast as it can, and everything it logged is counted at the end: journalled or
dropped, and for each sink delivered or pending. The counts are compared with the calls that were
made, with the journal and with the CSV file; a run whose counts do not add up is no result.

- A sink that is down: one in this process that says so at each attempt (beside CSV, in threads; the
  floor has the same two sinks, both up); an MLflow server whose port refuses connections, seen from
  the delivery process. What it did not get is pending, and in the journal. It has failed at least
  once before the loop begins.
- The slow disk takes {DISK / 1e6:.0f} MB/s: `os.write` of the process waits for its share, 4 KiB
  at a time, with the interpreter let go, as a write to a real one would. The journal is written
  there, and there is no sink. The queue, of the default size, takes up what it can.
- A full queue: the same disk, a queue of {SHORT_QUEUE:,} calls, and each policy of `overflow`.
- A picture: {PICTURE.nbytes >> 20} MiB of noise, which no encoder makes smaller, at every step of
  {STEP_SECS * 1e3:.0f} ms (a sleep: the training waits for a device). At most 64 MiB wait to be
  encoded; beyond that, `overflow` decides: to wait (the default), or to drop."""

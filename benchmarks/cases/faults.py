"""Costs of faults and difficult loads, compared with the same loop without them.

The cases are a sink that is down, a slow disk, many names, images, NaN, and a full queue. Each run
has a process of its own, whose memory is sampled from outside. The counts of each run must add up,
and are compared with what is read back.
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
from benchmarks.workloads import fault_worker
from benchmarks.workloads.fault_plans import DISK, IMAGE, NAMES, SHORT_QUEUE, STEP_SECS, Plan, plans
from metricbus import Report

SAMPLE_SECS = 0.005


class Outcome(NamedTuple):
    """Results of one run: values per second, and bytes of memory beyond those before the loop."""

    rate: float
    peak: int
    final: int
    report: Report


def measure(context: Context) -> list[Result]:
    all_plans = plans(context)
    outcomes: dict[str, list[Outcome]] = {plan.name: [] for plan in all_plans}

    def run(plan: Plan, number: int) -> float:
        context.log(f"round {number + 1}: {plan.name}")
        outcomes[plan.name].append(_run(plan, context.new_folder("faults")))
        return outcomes[plan.name][-1].rate

    interleaved({plan.name: partial(run, plan) for plan in all_plans}, rounds=1)
    rates = [_figure(plan, outcomes[plan.name], _rate) for plan in all_plans]
    return [
        _slowdown_table(all_plans, rates),
        _throughput_table(rates),
        _memory_table(all_plans, outcomes),
    ]


def _run(plan: Plan, folder: Path) -> Outcome:
    with Worker() as worker:
        process = worker.process
        worker.call(fault_worker.open_run, plan, folder)
        before = process.memory_info().rss
        looping = worker.submit(fault_worker.log_all)
        peak = _peak(process, looping)
        closing = worker.submit(fault_worker.close_run)
        peak = max(peak, _peak(process, closing), final := process.memory_info().rss)
        worker.call(fault_worker.check_run)
        return Outcome(looping.result(), peak - before, final - before, closing.result())


def _peak(process: psutil.Process, work: Future[Any]) -> int:
    """Sample the memory of the process until the work is done; return the maximum in bytes."""
    peak = process.memory_info().rss
    while not work.done():
        peak = max(peak, process.memory_info().rss)
        time.sleep(SAMPLE_SECS)
    work.result()
    return peak


# Tables


def _rate(outcome: Outcome) -> float:
    return outcome.rate


def _peak_mb(outcome: Outcome) -> float:
    return outcome.peak / 1e6


def _figure(plan: Plan, outcomes: list[Outcome], sample: Callable[[Outcome], float]) -> Figure:
    report = outcomes[-1].report
    return Figure(
        plan.name,
        [sample(outcome) for outcome in outcomes],
        "ours" if plan.baseline else "floor",
        read_back=f"{report.logged:,} of {report.logged:,}",
        note=_describe_counts(report),
    )


def _describe_counts(report: Report) -> str:
    """Describe the state of the values in the last round."""
    texts = [f"{report.journalled:,} journaled"]
    if report.dropped:
        texts.append(f"{report.dropped:,} dropped")
    for name, sink in report.sinks.items():
        kind = name.partition("+")[0].partition(":")[0]
        texts.append(
            f"{kind}: {sink.pending:,} pending"
            if sink.pending
            else f"{kind}: {sink.delivered:,} delivered"
        )
    return "; ".join(texts)


def _slowdown_table(all_plans: list[Plan], rates: list[Figure]) -> Result:
    by_name = {figure.name: figure for figure in rates}
    return Result(
        "faults",
        "Duration of the loop under faults",
        _TEXT,
        "x",
        [
            Figure(
                plan.name,
                ratios(by_name[plan.baseline], by_name[plan.name]),
                "ours",
                read_back=by_name[plan.name].read_back,
                note=f"baseline: {plan.baseline}; {by_name[plan.name].note}",
            )
            for plan in all_plans
            if plan.baseline
        ],
    )


def _throughput_table(rates: list[Figure]) -> Result:
    return Result(
        "faults-throughput",
        "Throughput of the loop under faults",
        "The same runs, in values per second on the training thread, including dropped values. The "
        "floors are the loops without a fault. In runs with images, a step logs "
        f"{len(NAMES)} numbers and one image.",
        "values/s",
        rates,
        better="higher",
    )


def _memory_table(all_plans: list[Plan], outcomes: dict[str, list[Outcome]]) -> Result:
    figures = []
    for plan in all_plans:
        final = statistics.median(outcome.final for outcome in outcomes[plan.name]) / 1e6
        figure = _figure(plan, outcomes[plan.name], _peak_mb)
        figures.append(
            Figure(plan.name, figure.samples, figure.role, note=f"{final:.1f} MB at the end")
        )
    return Result(
        "faults-memory",
        "Peak memory of the training process under faults",
        "The same runs: the peak resident memory from the start of the loop until the end of the "
        "run, minus the memory before the loop. It is sampled from outside every "
        f"{SAMPLE_SECS * 1e3:.0f} ms.",
        "MB",
        figures,
    )


_TEXT = f"""\
The duration of a loop with a fault or a difficult load, relative to the same loop without it. Each
run logs as fast as it can. At the end, all logged values are counted: journaled or dropped, and,
for each sink, delivered or pending. The counts must match the number of calls, the journal and the
CSV file; otherwise the case fails.

- **Sink down:** a sink in this process raises at each attempt; it runs in a thread next to a CSV
  sink, and its baseline has the same two sinks, both working. For the delivery process, the port of
  an MLflow server refuses connections. Undelivered values are pending and are in the journal. The
  sink has failed at least once before the loop starts.
- **Slow disk:** `os.write` of the process is limited to {DISK / 1e6:.0f} MB/s, in pieces of 4 KiB.
  It releases the GIL while it waits, as a real write does. Only the journal is written, and there
  is no sink. The queue has its default size.
- **Full queue:** the same disk with a queue of {SHORT_QUEUE:,} calls, for each `overflow` policy.
- **Images:** {IMAGE.nbytes >> 20} MiB of noise, which does not compress, in each step of
  {STEP_SECS * 1e3:.0f} ms (a sleep that stands for the wait for a device). At most 64 MiB wait to
  be encoded. Beyond that, the `overflow` policy applies: wait (the default) or drop."""

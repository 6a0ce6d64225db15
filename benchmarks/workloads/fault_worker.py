"""Runs one plan of the case `faults` in a worker process: opens, logs, closes, and counts."""

from __future__ import annotations

import csv
import logging
import time
from contextlib import ExitStack
from pathlib import Path

import metricbus
from benchmarks.workloads.fault_plans import Opened, Plan, log_scalars
from benchmarks.workloads.reading import complete, journal_values
from metricbus import Report

TIMEOUT_SECS = 60.0


class _WorkerState:
    """State that the worker process keeps between calls."""

    plan: Plan
    opened: Opened
    exits = ExitStack()
    logged = 0


def open_run(plan: Plan, folder: Path) -> None:
    """Open the bus and log once, so that every component has started."""
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO)
    _WorkerState.plan = plan
    _WorkerState.opened = plan.open(_WorkerState.exits, folder)
    _WorkerState.logged = log_scalars(_WorkerState.opened.bus, 1)
    _settle()


def log_all() -> float:
    """Run the plan's loop; return the rate in values per second on the calling thread."""
    start = time.perf_counter()
    logged = _WorkerState.plan.loop(_WorkerState.opened.bus, _WorkerState.plan.values)
    seconds = time.perf_counter() - start
    _WorkerState.logged += logged
    return logged / seconds


def _settle() -> None:
    """Wait until working sinks have received everything and the broken sink has failed once."""
    deadline = time.monotonic() + TIMEOUT_SECS
    while not _is_settled(report := _WorkerState.opened.bus.stats()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Values not delivered within {TIMEOUT_SECS:.0f} s:\n{report}")
        time.sleep(0.01)


def _is_settled(report: Report) -> bool:
    return not report.waiting and all(
        sink.error if _is_down(name) else not sink.pending for name, sink in report.sinks.items()
    )


def _is_down(sink: str) -> bool:
    return bool(_WorkerState.plan.down) and sink.startswith(_WorkerState.plan.down)


def close_run() -> Report:
    """Close the run; do not wait for a sink that is down."""
    with _WorkerState.exits:
        _settle()
        return _WorkerState.opened.bus.close(timeout=1 if _WorkerState.plan.down else TIMEOUT_SECS)


def check_run() -> None:
    """Raise unless the report accounts for every logged value and the outputs match the report."""
    bus, plan, report = _WorkerState.opened.bus, _WorkerState.plan, _WorkerState.opened.bus.stats()
    if bus.dir is None:
        raise RuntimeError("The run has no folder.")
    complete("the report", report.logged, _WorkerState.logged)
    complete("journal and drops", report.journalled + report.dropped, _WorkerState.logged)
    images = len(metricbus.read(bus.dir).media())
    complete("the journal", journal_values(bus.dir) + images, report.journalled)
    if plan.drops is not None and bool(report.dropped) != plan.drops:
        expected_drops = "some" if plan.drops else "none"
        raise RuntimeError(
            f"{plan.name}: {report.dropped:,} values were dropped, expected {expected_drops}:\n"
            f"{report}"
        )
    for name, sink in report.sinks.items():
        expected = (0, report.journalled) if _is_down(name) else (report.journalled, 0)
        if (sink.delivered, sink.pending) != expected:
            raise RuntimeError(
                f"{plan.name}: {name} should have {expected[0]:,} values delivered and "
                f"{expected[1]:,} pending:\n{report}"
            )
        if name == "csv":
            complete(name, _count_rows(bus.dir / "csv" / "metrics.csv"), sink.delivered)
        if name == "SwitchedSink" and _WorkerState.opened.switched:
            complete(name, _WorkerState.opened.switched.values, sink.delivered)


def _count_rows(file: Path) -> int:
    with open(file, newline="", encoding="utf-8") as lines:
        return sum(1 for _ in csv.DictReader(lines))

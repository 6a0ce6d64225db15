"""What a run's process does in the case `bad`: it opens the bus, logs, closes, and counts."""

from __future__ import annotations

import csv
import logging
import time
from contextlib import ExitStack
from pathlib import Path

import metricbus
from benchmarks.workloads.bad_runs import Opened, Plan, log_scalars
from benchmarks.workloads.reading import complete, journal_values
from metricbus import Report

PATIENCE = 60.0


class _Running:
    """What a run's process keeps between its parts."""

    plan: Plan
    opened: Opened
    exits = ExitStack()
    logged = 0


def open_run(plan: Plan, folder: Path) -> None:
    """Opens the bus and has everything work once."""
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO)
    _Running.plan = plan
    _Running.opened = plan.open(_Running.exits, folder)
    _Running.logged = log_scalars(_Running.opened.bus, 1)
    _settle()


def log_all() -> float:
    """Values a second, as the training sees it."""
    start = time.perf_counter()
    logged = _Running.plan.loop(_Running.opened.bus, _Running.plan.values)
    seconds = time.perf_counter() - start
    _Running.logged += logged
    return logged / seconds


def _settle() -> None:
    """Waits until all that works has everything, and what is down has been tried."""
    deadline = time.monotonic() + PATIENCE
    while not _is_settled(report := _Running.opened.bus.stats()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not everything arrives:\n{report}")
        time.sleep(0.01)


def _is_settled(report: Report) -> bool:
    return not report.waiting and all(
        sink.error if _is_down(name) else not sink.pending for name, sink in report.sinks.items()
    )


def _is_down(sink: str) -> bool:
    return bool(_Running.plan.down) and sink.startswith(_Running.plan.down)


def close_run() -> Report:
    """Ends the run; there is no use in waiting for what is down."""
    with _Running.exits:
        _settle()
        return _Running.opened.bus.close(timeout=1 if _Running.plan.down else PATIENCE)


def check_run() -> None:
    """Every value that was logged is where the report says, or this raises."""
    bus, plan, report = _Running.opened.bus, _Running.plan, _Running.opened.bus.stats()
    if bus.folder is None:
        raise RuntimeError("the run has no folder")
    complete("the report", report.logged, _Running.logged)
    complete("in the end", report.journalled + report.dropped, _Running.logged)
    pictures = len(metricbus.read(bus.folder).media())
    complete("the journal", journal_values(bus.folder) + pictures, report.journalled)
    if plan.drops is not None and bool(report.dropped) != plan.drops:
        raise RuntimeError(f"{plan.name}: {report.dropped:,} values were dropped\n{report}")
    for name, sink in report.sinks.items():
        expected = (0, report.journalled) if _is_down(name) else (report.journalled, 0)
        if (sink.delivered, sink.pending) != expected:
            raise RuntimeError(f"{plan.name}: {name} was to have {expected}:\n{report}")
        if name == "csv":
            complete(name, _rows(bus.folder / "csv" / "metrics.csv"), sink.delivered)
        if name == "SwitchedSink" and _Running.opened.switched:
            complete(name, _Running.opened.switched.values, sink.delivered)


def _rows(file: Path) -> int:
    with open(file, newline="", encoding="utf-8") as lines:
        return sum(1 for _ in csv.DictReader(lines))

"""The command: `python -W ignore -m benchmarks`, or `make bench` and `make bench-quick`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.framework import charts, report
from benchmarks.framework.machine import ROOT
from benchmarks.framework.results import Measured, load, merged, save
from benchmarks.framework.running import CaseError, run_case

CASES = {  # in the order of the report
    "calls": "benchmarks.cases.calls",
    "latency": "benchmarks.cases.latency",
    "loops": "benchmarks.cases.loops",
    "delivery": "benchmarks.cases.delivery",
    "growth": "benchmarks.cases.growth",
    "journal": "benchmarks.cases.journal",
    "ends": "benchmarks.cases.ends",
    "starting": "benchmarks.cases.starting",
    "footprint": "benchmarks.cases.footprint",
    "bad": "benchmarks.cases.bad",
}
TOGETHER = 3
LEAST_WIDTH = 110  # of the tables on the terminal

T = TypeVar("T")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Only show that everything works; no figure counts.")
    ] = False,
    only: Annotated[str, typer.Option(metavar="NAME,NAME", help="These cases alone.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where page, results and charts go.  [default: docs]"),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="Name the cases.")] = False,
    redraw: Annotated[
        bool, typer.Option("--report", help="Draw the page again, without measuring.")
    ] = False,
) -> None:
    """Measure what metricbus costs, beside what people use today.

    A quick run writes nothing unless --out says where.
    """
    if list_cases:
        print(*CASES, sep="\n")
        return
    cases = chosen(only)
    with tempfile.TemporaryDirectory(prefix="bench-page-") as nowhere:
        folder = out or (Path(nowhere) if quick else ROOT / "docs")
        if redraw:
            draw(folder, load(results_in(folder)))
            return
        failed = run(cases, folder, quick=quick)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


def chosen(only: str) -> dict[str, str]:
    """The cases of these names, or all; in the order of the report."""
    names = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := sorted(names - set(CASES)):
        raise typer.BadParameter(f"no case is named {', '.join(unknown)}; see --list")
    return {name: module for name, module in CASES.items() if not names or name in names}


def run(
    cases: Mapping[str, str],
    folder: Path,
    *,
    quick: bool,
    order: Iterable[str] = CASES,
) -> list[str]:
    """Measures case by case, keeps what each gave, draws the page; returns those that failed.

    A quick run measures some at the same time, since its figures do not count.
    """
    failed, seen = [], []
    (kept := folder / "benchmarks").mkdir(parents=True, exist_ok=True)

    def measure(case: str) -> Measured | CaseError:
        print(f"{case} …", file=sys.stderr)
        start = time.monotonic()
        try:
            measured = run_case(case, cases[case], quick=quick, keep=kept)
        except CaseError as error:
            print(f"{case}: FAILED: {error}", file=sys.stderr)
            return error
        print(f"{case}: {time.monotonic() - start:.1f} s", file=sys.stderr)
        return measured

    for case, measured in zip(cases, in_order(measure, cases, together=quick), strict=True):
        if isinstance(measured, CaseError):
            failed.append(case)
        else:
            seen.append(measured)
            results = results_in(folder)
            save(results, merged(load(results), seen, list(order)))
    draw(folder, load(results_in(folder)))
    show(seen)
    return failed


def in_order(measure: Callable[[str], T], cases: Iterable[str], *, together: bool) -> Iterator[T]:
    """What each case gave; three at a time if `together`, which share the cores."""
    if not together:
        yield from map(measure, cases)
        return
    with ThreadPoolExecutor(TOGETHER) as pool:
        yield from pool.map(measure, cases)


def draw(folder: Path, measured: list[Measured]) -> None:
    """The page's results and the charts, from what was measured."""
    charts.draw_all([result for one in measured for result in one.results], folder / "benchmarks")
    report.write(folder / "benchmarks.md", measured)


def show(measured: list[Measured]) -> None:
    """The tables, on the terminal."""
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    console.print(Markdown(report.page(measured, charts=False)))


def results_in(folder: Path) -> Path:
    """Where the figures are kept."""
    return folder / "benchmarks" / "results.json"


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")

"""The benchmark command: `python -W ignore -m benchmarks`, `make bench` or `make bench-quick`."""

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

# In the order of the report.
CASES = {
    "calls": "benchmarks.cases.calls",
    "latency": "benchmarks.cases.latency",
    "loops": "benchmarks.cases.loops",
    "delivery": "benchmarks.cases.delivery",
    "growth": "benchmarks.cases.growth",
    "journal": "benchmarks.cases.journal",
    "flush_close": "benchmarks.cases.flush_close",
    "startup": "benchmarks.cases.startup",
    "footprint": "benchmarks.cases.footprint",
    "faults": "benchmarks.cases.faults",
}
PARALLEL_CASES = 3
MIN_TABLE_WIDTH = 110  # columns

T = TypeVar("T")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Check that all cases run; the figures are not usable.")
    ] = False,
    only: Annotated[str, typer.Option(metavar="NAME,NAME", help="Run only these cases.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for the page, results and charts.  [default: docs]"
        ),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases and exit.")] = False,
    redraw: Annotated[
        bool, typer.Option("--report", help="Redraw the page from saved results.")
    ] = False,
) -> None:
    """Measure the cost of metricbus compared with other loggers.

    A quick run writes no files unless --out is given.
    """
    if list_cases:
        print(*CASES, sep="\n")
        return
    cases = chosen(only)
    with tempfile.TemporaryDirectory(prefix="bench-page-") as temporary:
        folder = out or (Path(temporary) if quick else ROOT / "docs")
        if redraw:
            draw(folder, load(results_in(folder)))
            return
        failed = run(cases, folder, quick=quick)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


def chosen(only: str) -> dict[str, str]:
    """Return the named cases, or all cases if there are no names, in the order of the report."""
    names = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := sorted(names - set(CASES)):
        raise typer.BadParameter(
            f"no case is named {', '.join(unknown)}; --list shows the names of all cases"
        )
    return {name: module for name, module in CASES.items() if not names or name in names}


def run(
    cases: Mapping[str, str],
    folder: Path,
    *,
    quick: bool,
    order: Iterable[str] = CASES,
) -> list[str]:
    """Measure the cases, save the results of each, and draw the page; return the cases that failed.

    A quick run measures several cases at the same time, because its figures are not used.
    """
    failed, succeeded = [], []
    (results_folder := folder / "benchmarks").mkdir(parents=True, exist_ok=True)

    def measure(case: str) -> Measured | CaseError:
        print(f"{case} …", file=sys.stderr)
        start = time.monotonic()
        try:
            measured = run_case(case, cases[case], quick=quick, keep=results_folder)
        except CaseError as error:
            print(f"{case}: FAILED: {error}", file=sys.stderr)
            return error
        print(f"{case}: {time.monotonic() - start:.1f} s", file=sys.stderr)
        return measured

    for case, measured in zip(cases, in_order(measure, cases, parallel=quick), strict=True):
        if isinstance(measured, CaseError):
            failed.append(case)
        else:
            succeeded.append(measured)
            results = results_in(folder)
            save(results, merged(load(results), succeeded, list(order)))
    draw(folder, load(results_in(folder)))
    show(succeeded)
    return failed


def in_order(measure: Callable[[str], T], cases: Iterable[str], *, parallel: bool) -> Iterator[T]:
    """Yield the result of each case; with `parallel`, measure several cases at the same time."""
    if not parallel:
        yield from map(measure, cases)
        return
    with ThreadPoolExecutor(PARALLEL_CASES) as pool:
        yield from pool.map(measure, cases)


def draw(folder: Path, measured: list[Measured]) -> None:
    """Draw the charts and write the page with the results."""
    charts.draw_all([result for case in measured for result in case.results], folder / "benchmarks")
    report.write(folder / "benchmarks.md", measured)


def show(measured: list[Measured]) -> None:
    """Print the tables to the terminal."""
    console = Console()
    console.width = max(console.width, MIN_TABLE_WIDTH)
    console.print(Markdown(report.page(measured, charts=False)))


def results_in(folder: Path) -> Path:
    """Return the path of the results file."""
    return folder / "benchmarks" / "results.json"


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")

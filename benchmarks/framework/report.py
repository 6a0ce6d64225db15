"""Generates the Markdown results between two markers on the benchmarks page.

The text outside the markers is maintained by hand and kept unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.framework.harness import Figure, Result, Target
from benchmarks.framework.machine import Machine
from benchmarks.framework.numbers import (
    distinguishable,
    format_tick,
    in_unit,
    ratio_text,
    with_unit,
)
from benchmarks.framework.results import Measured

START, END = "<!-- results -->", "<!-- end of results -->"
EMPTY_PAGE = f"# Benchmarks\n\n{START}\n{END}\n"
NO_RESULTS = "There are no results yet. Run `make bench` to measure."
BUSY = 0.1  # fraction of busy cores before or after a case from which the page warns
MAX_COLUMNS = 10  # columns for positions on the x axis; with more, only the chart shows all

TEXT_COLUMNS = {"target", "met", "date (UTC)", "commit", "note"}  # aligned to the left

Row = Sequence[str]


def write(path: Path, measured: Sequence[Measured]) -> None:
    """Write the results into the page, or into a new page if there is none."""
    frame = path.read_text() if path.exists() else EMPTY_PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replaced(frame, page(measured)))


def replaced(frame: str, results: str) -> str:
    """Return the page with these results between its markers."""
    before, start, rest = frame.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"The page has no marker {START} followed by {END}.")
    return f"{before}{START}\n\n{results}\n\n{END}{after}"


def page(measured: Sequence[Measured], *, charts: bool = True) -> str:
    """Return all results: warnings, targets, conditions, then one section per result."""
    if not measured:
        return NO_RESULTS
    results = [section(result, charts) for one in measured for result in one.results]
    return "\n\n".join([*warnings(measured), *targets(measured), *conditions(measured), *results])


def targets(measured: Sequence[Measured]) -> list[str]:
    """Return one table with the targets of all cases."""
    pairs = [
        (one, target) for one in measured for result in one.results for target in result.targets
    ]
    if not pairs:
        return []
    met = sum(target.met for _, target in pairs)
    rows = [[one.case, *_target(target)] for one, target in pairs]
    return [
        f"### Targets\n\n{met} of {len(pairs)} targets are met.",
        table(["case", "target", "limit", "measured", "met"], rows),
    ]


def _target(target: Target) -> Row:
    numbers = distinguishable(target.measured, target.limit)
    measured, limit = (with_unit(number, target.unit) for number in numbers)
    name = f"{target.name} ({target.note})" if target.note else target.name
    sign = "≤" if target.at_most else "≥"
    return [name, f"{sign} {limit}", measured, "yes" if target.met else "**no**"]


def conditions(measured: Sequence[Measured]) -> list[str]:
    """Return the machines and versions, and the date, duration and system load of each case."""
    machines = list({repr(one.machine): one.machine for one in measured}.values())
    several = len(machines) > 1
    parts = ["### Machine and versions"]
    parts += [
        describe(one, f"Machine {number}: " if several else "")
        for number, one in enumerate(machines, 1)
    ]
    parts += _missing(measured)
    head = ["case", "date (UTC)", "duration, s", "commit", "load average", "other load"]
    rows = [_condition(one) for one in measured]
    if several:
        head.append("machine")
        rows = [
            [*row, str(machines.index(one.machine) + 1)]
            for row, one in zip(rows, measured, strict=True)
        ]
    parts.append(table(head, rows))
    parts.append(
        "`load average` was read before and after the case and includes the preceding "
        "measurements. `other load` is the fraction of all cores that were busy in the second "
        "before the case started and in the second after it ended."
    )
    return parts


def describe(machine: Machine, head: str = "") -> str:
    """Describe a machine in one sentence, and its packages in another."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{head}{machine.processor}, {machine.cores} usable cores, {machine.memory} of memory, "
        f"{machine.kernel}, {machine.python}.\n\nPackages: {versions}."
    )


def _condition(one: Measured) -> Row:
    return [
        one.case,
        one.date,
        f"{one.seconds:,.0f}",
        one.commit or "unknown",
        f"{one.before.load:.1f}, {one.after.load:.1f}",
        f"{one.before.busy:.0%}, {one.after.busy:.0%}",
    ]


def _missing(measured: Sequence[Measured]) -> list[str]:
    """List the peers that could not be measured, with the reasons."""
    missing = {name: reason for one in measured for name, reason in one.missing.items()}
    if not missing:
        return []
    reasons = [f"- {name}: {reason}" for name, reason in missing.items()]
    return ["Not measured:\n\n" + "\n".join(reasons)]


def warnings(measured: Sequence[Measured]) -> list[str]:
    """Warn about conditions that make the figures less reliable."""
    quick = [one.case for one in measured if one.quick]
    busy = [one.case for one in measured if max(one.before.busy, one.after.busy) > BUSY]
    texts = []
    if quick:
        texts.append(f"**Quick run; the figures are not meaningful:** {', '.join(quick)}.")
    if busy:
        texts.append(f"**The machine had other load during:** {', '.join(busy)}.")
    return texts


def section(result: Result, charts: bool = True) -> str:
    """Return a result: its text, chart, table and targets."""
    parts = [f"### {result.title}", result.text.strip()]
    if charts and result.chart != "none":
        parts.append(f"![{plain(result.title)}](benchmarks/{result.id}.svg)")
    has_x = any(figure.x is not None for figure in result.figures)
    parts.append(x_table(result) if has_x else arms_table(result))
    if result.targets:
        parts.append("\n".join(_target_line(target) for target in result.targets))
    return "\n\n".join(part for part in parts if part)


def _target_line(target: Target) -> str:
    name, limit, measured, met = _target(target)
    outcome = "met" if met == "yes" else "**not met**"
    return f"- {name}: target {limit}, measured {measured}, {outcome}"


def arms_table(result: Result) -> str:
    """Return a table with a row per arm; empty columns are omitted."""
    baseline = result.figure(result.baseline) if result.baseline else None
    head = ["", f"median, {unit_of(result)}", "min to max"]
    rows = [[_name(figure), *_median_and_spread(figure, result)] for figure in result.figures]
    columns = [
        (
            f"ratio to {result.baseline}",
            [ratio_text(figure, baseline) for figure in result.figures],
        ),
        ("read back", [figure.read_back for figure in result.figures]),
        ("note", [figure.note for figure in result.figures]),
    ]
    for title, cells in columns:
        if any(cells):
            head.append(title)
            rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    return table(head, rows)


def _median_and_spread(figure: Figure, result: Result) -> Row:
    return [in_unit(figure.median, result.unit), spread(figure, result)]


def x_table(result: Result) -> str:
    """Return a table with a row per arm and a column per x; spreads are in parentheses."""
    positions = _sample(sorted({figure.x for figure in result.figures if figure.x is not None}))
    label = result.x_label or "x"
    head = [f"median, {unit_of(result)}; {label}", *map(format_tick, positions)]
    cells = {(_name(figure), figure.x): _cell(figure, result) for figure in result.figures}
    names = list(dict.fromkeys(name for name, _ in cells))
    rows = [[name, *(cells.get((name, x), "") for x in positions)] for name in names]
    for title, field in [("read back", "read_back"), ("note", "note")]:
        texts = _texts_by_arm(result, field)
        if any(texts.values()):
            head.append(title)
            rows = [[*row, texts[row[0]]] for row in rows]
    return table(head, rows)


def _sample(positions: list[float]) -> list[float]:
    """Return all positions if they fit into a table, and otherwise an evenly spaced selection."""
    if len(positions) <= MAX_COLUMNS:
        return positions
    last = len(positions) - 1
    return [positions[round(i * last / (MAX_COLUMNS - 1))] for i in range(MAX_COLUMNS)]


def _cell(figure: Figure, result: Result) -> str:
    median = in_unit(figure.median, result.unit)
    return f"{median} ({spread(figure, result)})" if len(figure.samples) > 1 else median


def _texts_by_arm(result: Result, field: str) -> dict[str, str]:
    """Return the text of a field for each arm: the first and the last of its different texts."""
    by_arm: dict[str, dict[str, None]] = {}
    for figure in result.figures:
        texts = by_arm.setdefault(_name(figure), {})
        if text := getattr(figure, field):
            texts[text] = None
    distinct = {name: list(texts) for name, texts in by_arm.items()}
    return {
        name: " … ".join(texts if len(texts) < 2 else [texts[0], texts[-1]])
        for name, texts in distinct.items()
    }


def _name(figure: Figure) -> str:
    """Return the name, bold for metricbus, and with the role for floors and controls."""
    match figure.role:
        case "ours":
            return f"**{figure.name}**"
        case "peer":
            return figure.name
        case _:
            return f"{figure.name} ({figure.role})"


def spread(figure: Figure, result: Result) -> str:
    """Format the smallest and the largest round; empty if there is only one."""
    if len(figure.samples) < 2:
        return ""
    return " to ".join(in_unit(end, result.unit) for end in figure.spread)


def unit_of(result: Result) -> str:
    """Return the unit for the header of a table."""
    return "ratio" if result.unit == "x" else result.unit


def table(head: Row, rows: Iterable[Row]) -> str:
    """Return a Markdown table, with text aligned to the left and numbers to the right."""
    is_text = [index == 0 or title in TEXT_COLUMNS for index, title in enumerate(head)]
    lines = [[plain(cell) for cell in row] for row in [head, *rows]]
    lines.insert(1, ["---" if left else "---:" for left in is_text])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Escape characters that would end a cell or start a tag."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())

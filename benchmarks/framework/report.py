"""From what was measured to Markdown: the part of the page between the two marks.

The frame around it is written by hand and never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.framework.harness import Figure, Result, Target
from benchmarks.framework.machine import Machine
from benchmarks.framework.numbers import apart, beside_text, in_unit, place, with_unit
from benchmarks.framework.results import Measured

START, END = "<!-- results -->", "<!-- end of results -->"
BARE = f"# Benchmarks\n\n{START}\n{END}\n"
NOTHING = "Nothing has been measured yet: `make bench` does."
BUSY = 0.1  # of the cores were at work before or after a case: more than that is told
MOST_COLUMNS = 10  # of a table about growth; with more places than that, only the chart shows all

WORDS = {"target", "met", "measured (UTC)", "code", "note"}  # the columns that have some

Row = Sequence[str]


def write(path: Path, measured: Sequence[Measured]) -> None:
    """Puts the results into the page, or into a bare one if there is none."""
    frame = path.read_text() if path.exists() else BARE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replaced(frame, page(measured)))


def replaced(frame: str, results: str) -> str:
    """The page with these results between its marks."""
    before, start, rest = frame.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page has no {START} followed by {END}")
    return f"{before}{START}\n\n{results}\n\n{END}{after}"


def page(measured: Sequence[Measured], *, charts: bool = True) -> str:
    """All results: warnings, targets, where and when, then table by table."""
    if not measured:
        return NOTHING
    results = [section(result, charts) for one in measured for result in one.results]
    return "\n\n".join([*warnings(measured), *targets(measured), *conditions(measured), *results])


def targets(measured: Sequence[Measured]) -> list[str]:
    """What was aimed at, and what was seen, of all cases in one table."""
    aims = [
        (one, target) for one in measured for result in one.results for target in result.targets
    ]
    if not aims:
        return []
    met = sum(target.met for _, target in aims)
    rows = [[one.case, *_target(target)] for one, target in aims]
    return [
        f"### Targets\n\n{met} of {len(aims)} met.",
        table(["case", "target", "aimed at", "seen", "met"], rows),
    ]


def _target(target: Target) -> Row:
    seen, limit = (with_unit(one, target.unit) for one in apart(target.seen, target.limit))
    what = f"{target.what} ({target.note})" if target.note else target.what
    sign = "≤" if target.at_most else "≥"
    return [what, f"{sign} {limit}", seen, "yes" if target.met else "**no**"]


def conditions(measured: Sequence[Measured]) -> list[str]:
    """The machines and versions, and each case's date, duration and what else went on."""
    machines = list({repr(one.machine): one.machine for one in measured}.values())
    several = len(machines) > 1
    parts = ["### Machine and versions"]
    parts += [
        describe(one, f"Machine {number}: " if several else "")
        for number, one in enumerate(machines, 1)
    ]
    parts += _missing(measured)
    head = ["case", "measured (UTC)", "took, s", "code", "load", "others at work"]
    rows = [_condition(one) for one in measured]
    if several:
        head.append("machine")
        rows = [
            [*row, str(machines.index(one.machine) + 1)]
            for row, one in zip(rows, measured, strict=True)
        ]
    parts.append(table(head, rows))
    parts.append(
        "`load` is the load average before and after the case, which has in it what was measured "
        "before; `others at work` is the share of all cores that was busy in the second before "
        "it began and in the second after it ended."
    )
    return parts


def describe(machine: Machine, head: str = "") -> str:
    """A machine in a sentence, its packages in another."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{head}{machine.processor}, {machine.cores} cores usable, {machine.memory} of memory, "
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
    """The peers that could not be measured, and why."""
    missing = {name: why for one in measured for name, why in one.missing.items()}
    if not missing:
        return []
    reasons = [f"- {name}: {why}" for name, why in missing.items()]
    return ["Not measured here:\n\n" + "\n".join(reasons)]


def warnings(measured: Sequence[Measured]) -> list[str]:
    """What makes the figures worth less."""
    quick = [one.case for one in measured if one.quick]
    busy = [one.case for one in measured if max(one.before.busy, one.after.busy) > BUSY]
    told = []
    if quick:
        told.append(f"**A quick run, whose figures mean nothing:** {', '.join(quick)}.")
    if busy:
        told.append(f"**The machine had other work meanwhile:** {', '.join(busy)}.")
    return told


def section(result: Result, charts: bool = True) -> str:
    """A result: what a reader must know, the picture, the table, the targets."""
    parts = [f"### {result.title}", result.text.strip()]
    if charts and result.chart != "none":
        parts.append(f"![{plain(result.title)}](benchmarks/{result.id}.svg)")
    by_place = any(figure.at is not None for figure in result.figures)
    parts.append(growth_table(result) if by_place else arms_table(result))
    if result.targets:
        parts.append("\n".join(_aim(target) for target in result.targets))
    return "\n\n".join(part for part in parts if part)


def _aim(target: Target) -> str:
    what, limit, seen, met = _target(target)
    return f"- {what}: aimed at {limit}, seen {seen}, {'met' if met == 'yes' else '**not met**'}"


def arms_table(result: Result) -> str:
    """A row for each arm; columns that nobody fills are left out."""
    beside = result.figure(result.beside) if result.beside else None
    head = ["", f"median, {unit_of(result)}", "least to most"]
    rows = [[_name(figure), *_seen(figure, result)] for figure in result.figures]
    columns = [
        (f"times {result.beside}", [beside_text(figure, beside) for figure in result.figures]),
        ("read back", [figure.complete for figure in result.figures]),
        ("note", [figure.note for figure in result.figures]),
    ]
    for title, cells in columns:
        if any(cells):
            head.append(title)
            rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    return table(head, rows)


def _seen(figure: Figure, result: Result) -> Row:
    return [in_unit(figure.median, result.unit), spread(figure, result)]


def growth_table(result: Result) -> str:
    """A row for each arm, a column for each place on the x axis; the spread in brackets."""
    places = _some(sorted({figure.at for figure in result.figures if figure.at is not None}))
    head = [f"median, {unit_of(result)}; {result.x or 'at'}", *(f"{place(at)}" for at in places)]
    cells = {(_name(figure), figure.at): _cell(figure, result) for figure in result.figures}
    names = list(dict.fromkeys(name for name, _ in cells))
    rows = [[name, *(cells.get((name, at), "") for at in places)] for name in names]
    for title, texts in [("read back", _told(result, "complete")), ("note", _told(result, "note"))]:
        if any(texts.values()):
            head.append(title)
            rows = [[*row, texts[row[0]]] for row in rows]
    return table(head, rows)


def _some(places: list[float]) -> list[float]:
    """All of them if a table can hold them, otherwise some that lie evenly between the ends."""
    if len(places) <= MOST_COLUMNS:
        return places
    last = len(places) - 1
    return [places[round(i * last / (MOST_COLUMNS - 1))] for i in range(MOST_COLUMNS)]


def _cell(figure: Figure, result: Result) -> str:
    median = in_unit(figure.median, result.unit)
    return f"{median} ({spread(figure, result)})" if len(figure.samples) > 1 else median


def _told(result: Result, field: str) -> dict[str, str]:
    """By the arms' names, what their figures say there; of many texts the first and the last."""
    texts: dict[str, dict[str, None]] = {}
    for figure in result.figures:
        texts.setdefault(_name(figure), {})[getattr(figure, field)] = None
    told = {name: [text for text in said if text] for name, said in texts.items()}
    return {name: " … ".join(dict.fromkeys([*said[:1], *said[-1:]])) for name, said in told.items()}


def _name(figure: Figure) -> str:
    """What is ours stands out, what is no competitor says so."""
    match figure.role:
        case "ours":
            return f"**{figure.name}**"
        case "peer":
            return figure.name
        case _:
            return f"{figure.name} ({figure.role})"


def spread(figure: Figure, result: Result) -> str:
    """The least and the greatest round; a single round has none."""
    if len(figure.samples) < 2:
        return ""
    return " to ".join(in_unit(end, result.unit) for end in figure.spread)


def unit_of(result: Result) -> str:
    """As a table's head names it."""
    return "times" if result.unit == "x" else result.unit


def table(head: Row, rows: Iterable[Row]) -> str:
    """In Markdown; words to the left, numbers to the right."""
    words = [index == 0 or title in WORDS for index, title in enumerate(head)]
    lines = [[plain(cell) for cell in row] for row in [head, *rows]]
    lines.insert(1, ["---" if word else "---:" for word in words])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Without what would end a cell, or begin a tag."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())

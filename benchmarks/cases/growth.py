"""What grows: with the values in a run, with names, with sinks, with threads.

Each run is a process of its own (`benchmarks.workloads.growth_run`), which opens a bus, warms it up
and logs everything twice, paced and flat out. Everything is read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping

from benchmarks.framework.harness import Context, Figure, Result, Role, Target, ratio
from benchmarks.workloads.growth_load import BURST, PACE, Shape
from benchmarks.workloads.growth_run import PARSED, Seen, run_apart

BYTES_A_VALUE = 150  # in the journal, the CSV and the event file together, at most
FIVE = ("csv", "tensorboard", "logging", "wandb?mode=offline", "mlflow")

CALLER, WALL, ARRIVAL = "the caller, processor", "the caller, wall clock", "until all have it"
FLOOR = "deque.append, as the caller, processor"


def measure(context: Context) -> list[Result]:
    """The cost of a value as everything grows, and the memory of the training process."""
    quick = context.quick
    sizes = [10**3, 10**4] if quick else [10**4, 10**5, 10**6, 10**7]
    values, many = context.pick(10**5, 2_000), context.pick(10**4, 1_000)
    shapes = {size: Shape(size) for size in sizes if _has_room(context, size)}
    by_size = _run(context, "values", shapes, lambda size: {10**6: 1, 10**7: 1}.get(size, 3))
    names = [1, 100, 1_000] if quick else [1, 10, 100, 1_000, 10_000]
    by_names = {count: Shape(values, names=count, together=False) for count in names}
    threads = [1, 4] if quick else [1, 2, 4, 8, 16]
    by_threads = {count: Shape(values, threads=count, together=False) for count in threads}
    sinks = range(1, context.pick(5, 3) + 1)
    by_sinks = {count: Shape(many, sinks=",".join(FIVE[:count])) for count in sinks}
    return [
        _costs("values", "values in one run", by_size, _MAPPING + _LARGE),
        _memory(by_size),
        _costs("names", "names", _run(context, "names", by_names), _NAMES, beside=100),
        _costs("sinks", "sinks", _run(context, "sinks", by_sinks), _MAPPING + _SINKS),
        _costs("threads", "threads", _run(context, "threads", by_threads), _SINGLE),
    ]


_ABOUT = (
    f"Caller: inside `log()`, at {PACE:,} values a second in bursts of {BURST:,}, which is less "
    "than the journal takes, so nothing has to wait; all threads together. Until all have it: "
    "flat out, from the first `log()` until every sink has everything; there the queue fills, and "
    "`overflow=block` holds the loop. Opening is left out, the time to notice that all is done is "
    "not: of few values it is most. "
)
_LARGE = (
    f"Beyond {PARSED // 2:,} values, the lines are counted in the CSV file; "
    "for TensorBoard's, the sink's own count is taken. "
)
_MAPPING = "One mapping of 20 a step. "
_SINGLE = "One value a call, 20 a step; csv and tensorboard. "
_NAMES = (
    _SINGLE + "Steps of a single name have one value, those of ten have ten. What the first use of "
    "a name costs is left out, with the warm-up. "
)
_SINKS = f"In this order: {', '.join(FIVE)}. All of them share the processor that is left. "


def _run(
    context: Context,
    what: str,
    shapes: Mapping[int, Shape],
    rounds: Callable[[int], int] = lambda _: 2,
) -> dict[int, list[Seen]]:
    """Each shape in a process of its own, in rounds there and back; some sit out later rounds."""
    seen: dict[int, list[Seen]] = {at: [] for at in shapes}
    for number in range(context.pick(max(map(rounds, shapes)), 1)):
        for at in list(shapes)[:: -1 if number % 2 else 1]:
            if number < rounds(at):
                context.tell(f"{what}: {at:,}, round {number + 1}")
                folder = context.place(f"growth-{what}")
                seen[at].append(run_apart(shapes[at], folder))
                shutil.rmtree(folder)
    return seen


def _costs(
    id: str, x: str, seen: Mapping[int, list[Seen]], text: str, beside: int | None = None
) -> Result:
    """Four lines; and targets for the far end beside the near one, or beside another place."""
    figures = _figures(
        [
            (FLOOR, "floor", lambda one: one.floor),
            (CALLER, "ours", lambda one: one.caller),
            (WALL, "ours", lambda one: one.wall),
            (ARRIVAL, "ours", lambda one: one.arrival),
        ],
        seen,
    )
    *_, before, most = seen
    few = beside or min(seen)
    pairs = [(CALLER, few), (ARRIVAL, few), (ARRIVAL, before)]
    if id == "sinks":  # each has work of its own to do, which is not the caller's
        pairs = [(CALLER, few)]
    at = {(figure.name, figure.at): figure for figure in figures}
    targets = [
        Target(f"{name}: {most:,} {x} beside {less:,}", ratio(at[name, most], at[name, less]), 1.1)
        for name, less in dict.fromkeys(pairs)
    ]
    title = f"The cost of a value by the number of {x}"
    return Result(f"growth-{id}", title, text + _ABOUT, "ns", figures, targets, chart="lines", x=x)


def _memory(seen: Mapping[int, list[Seen]]) -> Result:
    paced, flat_out = "paced", "flat out: the queue is full"
    figures = _figures(
        [
            (paced, "ours", lambda one: one.paced_mb),
            (flat_out, "ours", lambda one: one.flat_out_mb),
        ],
        seen,
    )
    most = list(seen)[-1]
    targets = [
        Target(f"{figure.name}: growth at {most:,} values", figure.spread[1], 20.0, "MB")
        for figure in figures
        if figure.at == most
    ]
    text = (
        "Resident memory of the training process: by how much it grew at most after opening and "
        "warming up, before the same was logged again flat out, and then by how much it grew "
        "beyond that. The queue is bounded, by `queue_size` and `queue_bytes`."
    )
    return Result(
        "growth-memory",
        "Memory of the training process by the number of values",
        text,
        "MB",
        figures,
        targets,
        chart="lines",
        x="values in one run",
    )


def _figures(
    lines: Iterable[tuple[str, Role, Callable[[Seen], float]]], seen: Mapping[int, list[Seen]]
) -> list[Figure]:
    return [
        Figure(name, [pick(one) for one in runs], role, at=at, complete=runs[0].read_back)
        for name, role, pick in lines
        for at, runs in seen.items()
    ]


def _has_room(context: Context, size: int) -> bool:
    """Whether the disk has twice what a run of this size writes; a run logs all values twice."""
    fits = shutil.disk_usage(context.folder).free > 2 * 2 * size * BYTES_A_VALUE
    if not fits:
        context.tell(f"{size:,} values are left out: the disk has no room for them")
    return fits

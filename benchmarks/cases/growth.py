"""Scaling of the cost with the number of values in a run, names, sinks, and threads.

Each run has a process of its own (`benchmarks.workloads.growth_run`), which opens a bus, warms it
up, and logs everything twice: at a fixed rate and at full speed. Everything is read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping

from benchmarks.framework.harness import Context, Figure, Result, Role, Target, ratio
from benchmarks.workloads.growth_load import BURST, PACE, RunShape
from benchmarks.workloads.growth_run import PARSED, RunCosts, run_in_new_process

BYTES_PER_VALUE = 150  # in the journal, the CSV file and the event file together
SINKS_IN_ORDER = ("csv", "tensorboard", "logging", "wandb?mode=offline", "mlflow")

CALLER, WALL, DELIVERY = "caller, CPU time", "caller, wall-clock time", "delivery to all sinks"
FLOOR = "deque.append, CPU time"


def measure(context: Context) -> list[Result]:
    """Measure the cost of a value for each quantity, and the memory of the training process."""
    quick = context.quick
    sizes = [10**3, 10**4] if quick else [10**4, 10**5, 10**6, 10**7]
    values, sink_values = context.pick(10**5, 2_000), context.pick(10**4, 1_000)
    shapes = {size: RunShape(size) for size in sizes if _has_room(context, size)}
    by_size = _run(context, "values", shapes, lambda size: {10**6: 1, 10**7: 1}.get(size, 3))
    names = [1, 100, 1_000] if quick else [1, 10, 100, 1_000, 10_000]
    by_names = {count: RunShape(values, names=count, together=False) for count in names}
    threads = [1, 4] if quick else [1, 2, 4, 8, 16]
    by_threads = {count: RunShape(values, threads=count, together=False) for count in threads}
    sinks = range(1, context.pick(5, 3) + 1)
    by_sinks = {
        count: RunShape(sink_values, sinks=",".join(SINKS_IN_ORDER[:count])) for count in sinks
    }
    return [
        _cost_table("values", "values in a run", by_size, _MAPPING + _LARGE),
        _memory_table(by_size),
        _cost_table("names", "names", _run(context, "names", by_names), _NAMES, baseline=100),
        _cost_table("sinks", "sinks", _run(context, "sinks", by_sinks), _MAPPING + _SINKS),
        _cost_table("threads", "threads", _run(context, "threads", by_threads), _SINGLE),
    ]


_METHOD = (
    f"The caller's times are those inside `log()`, over all threads, at {PACE:,} values per second "
    f"in bursts of {BURST:,}. The journal sustains this rate, so calls do not wait. Delivery is "
    "measured at full speed, from the first `log()` until every sink has everything; here the "
    "queue fills up, and `overflow=block` blocks the loop. Opening the bus is not included. The "
    "time until the bus notices that delivery is complete is included, and dominates for few "
    "values."
)
_LARGE = (
    f"For more than {PARSED // 2:,} values, the lines of the CSV file are counted instead of "
    "parsed, and the sink's own count is used for TensorBoard. "
)
_MAPPING = "One mapping of 20 values per step. "
_SINGLE = "One value per call, 20 per step, to csv and tensorboard. "
_NAMES = (
    _SINGLE + "With fewer than 20 names, a step has one value per name. The first use of each name "
    "is part of the warm-up and not measured. "
)
_SINKS = (
    f"The sinks are added in this order: {', '.join(SINKS_IN_ORDER)}. They share the remaining "
    "CPU time. "
)


def _run(
    context: Context,
    quantity: str,
    shapes: Mapping[int, RunShape],
    rounds: Callable[[int], int] = lambda _: 2,
) -> dict[int, list[RunCosts]]:
    """Run each shape in new processes, in rounds of alternating order.

    `rounds` returns the number of rounds for an x value.
    """
    costs: dict[int, list[RunCosts]] = {x: [] for x in shapes}
    for number in range(context.pick(max(map(rounds, shapes)), 1)):
        for x in list(shapes)[:: -1 if number % 2 else 1]:
            if number < rounds(x):
                context.log(f"{quantity}: {x:,}, round {number + 1}")
                folder = context.new_folder(f"growth-{quantity}")
                costs[x].append(run_in_new_process(shapes[x], folder))
                shutil.rmtree(folder)
    return costs


def _cost_table(
    id: str,
    x_label: str,
    costs: Mapping[int, list[RunCosts]],
    text: str,
    baseline: int | None = None,
) -> Result:
    """Return the costs, with targets for the largest x relative to the smallest, or to `baseline`.

    Delivery is also compared with the second largest x.
    """
    figures = _figures(
        [
            (FLOOR, "floor", lambda costs: costs.floor),
            (CALLER, "ours", lambda costs: costs.caller),
            (WALL, "ours", lambda costs: costs.wall),
            (DELIVERY, "ours", lambda costs: costs.delivery),
        ],
        costs,
    )
    *_, second_largest, largest = costs
    smallest = baseline or min(costs)
    pairs = [(CALLER, smallest), (DELIVERY, smallest), (DELIVERY, second_largest)]
    if id == "sinks":  # delivery takes longer with each sink; only the caller must not
        pairs = [(CALLER, smallest)]
    by_x = {(figure.name, figure.x): figure for figure in figures}
    targets = [
        Target(
            f"{name}: {largest:,} {x_label}, relative to {x:,}",
            ratio(by_x[name, largest], by_x[name, x]),
            1.1,
        )
        for name, x in dict.fromkeys(pairs)
    ]
    return Result(
        f"growth-{id}",
        f"Cost per value, by number of {x_label}",
        text + _METHOD,
        "ns",
        figures,
        targets,
        chart="lines",
        x_label=x_label,
    )


def _memory_table(costs: Mapping[int, list[RunCosts]]) -> Result:
    paced, full_speed = "fixed rate", "full speed, queue full"
    figures = _figures(
        [
            (paced, "ours", lambda costs: costs.paced_mb),
            (full_speed, "ours", lambda costs: costs.full_speed_mb),
        ],
        costs,
    )
    largest = list(costs)[-1]
    targets = [
        Target(f"{figure.name}: memory growth at {largest:,} values", figure.spread[1], 20.0, "MB")
        for figure in figures
        if figure.x == largest
    ]
    text = (
        "Peak growth of the resident memory of the training process. `fixed rate` is the growth "
        "after opening and warming up. `full speed` is the further growth while the same values "
        "are logged again at full speed. The queue is bounded by `queue_size` and `queue_bytes`."
    )
    return Result(
        "growth-memory",
        "Memory of the training process, by number of values",
        text,
        "MB",
        figures,
        targets,
        chart="lines",
        x_label="values in a run",
    )


def _figures(
    lines: Iterable[tuple[str, Role, Callable[[RunCosts], float]]],
    costs: Mapping[int, list[RunCosts]],
) -> list[Figure]:
    return [
        Figure(name, [pick(run) for run in runs], role, x=x, read_back=runs[0].read_back)
        for name, role, pick in lines
        for x, runs in costs.items()
    ]


def _has_room(context: Context, size: int) -> bool:
    """Return whether the disk has twice the space of a run, which logs all values twice."""
    has_room = shutil.disk_usage(context.folder).free > 2 * 2 * size * BYTES_PER_VALUE
    if not has_room:
        context.log(f"{size:,} values: skipped, not enough disk space")
    return has_room

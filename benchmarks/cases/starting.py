"""How long it takes to begin: imports, and opening a run until the first `log()` has returned.

Each is measured by `perf_counter` inside an interpreter of its own, around the statement alone.
That is more precise than timing a whole process from outside, as pyperf's command benchmark does:
the start of Python, some 10 ms that vary by as much as what is looked for, is not in it. Nothing
but `time` is imported before, so that nobody finds a module already loaded. A first round, which
does not count, warms the page cache.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from benchmarks.framework.fresh import fresh
from benchmarks.framework.harness import Context, Figure, Result, Role, Target, interleaved, ratio

NUMPY = "import numpy"
OURS = "from metricbus import MetricBus"
LIGHT: dict[str, Role] = {
    "import nothing_in_it": "floor",
    NUMPY: "control",
    "import msgspec": "control",
    "import metricbus": "ours",
    OURS: "ours",
}
HEAVY = (
    "from torch.utils.tensorboard import SummaryWriter",
    "import wandb",
    "import mlflow",
)
FIVE_SINKS = "MetricBus, five sinks"

# Each runs in a folder of its own; what stands before `begin()` is not timed, nor what comes after
# `end()`, where the value is read back.
OPENINGS: dict[str, tuple[Role, str]] = {
    "a folder, a file and a process": (
        "floor",
        """
        import os, subprocess, sys
        begin()
        os.mkdir("run")
        with open("run/journal.jsonl", "wb") as file:
            file.write(b"{}")
        process = subprocess.Popen([sys.executable, "-S", "-c", ""])
        end()
        process.wait()
        count = os.path.getsize("run/journal.jsonl") // 2
        """,
    ),
    FIVE_SINKS: (
        "ours",
        """
        import logging
        logger = logging.getLogger("metricbus")
        logger.addHandler(logging.FileHandler("log.txt"))
        logger.setLevel("INFO")
        from metricbus import MetricBus
        begin()
        bus = MetricBus(
            sinks="logging,csv,tensorboard,wandb?mode=offline,mlflow+sqlite:///../mlflow.db"
        )
        bus.log("loss", 0.5, step=0)
        end()
        report = bus.close(timeout=120)
        assert report.complete and len(report.sinks) == 5, report
        count = min(sink.delivered for sink in report.sinks.values())
        """,
    ),
    "MetricBus, its default sinks": (
        "ours",
        """
        import logging
        logger = logging.getLogger("metricbus")
        logger.addHandler(logging.FileHandler("log.txt"))
        logger.setLevel("INFO")
        from metricbus import MetricBus
        begin()
        bus = MetricBus()
        bus.log("loss", 0.5, step=0)
        end()
        report = bus.close(timeout=120)
        assert report.complete and len(report.sinks) == 2, report
        count = min(sink.delivered for sink in report.sinks.values())
        """,
    ),
    "SummaryWriter() and add_scalar": (
        "peer",
        """
        from torch.utils.tensorboard import SummaryWriter
        begin()
        writer = SummaryWriter("events")
        writer.add_scalar("loss", 0.5, 0)
        end()
        writer.close()
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        count = len(EventAccumulator("events").Reload().Scalars("loss"))
        """,
    ),
    "wandb.init and Run.log": (
        "peer",
        """
        import wandb
        begin()
        run = wandb.init(mode="offline", project="bench", settings=wandb.Settings(console="off"))
        run.log({"loss": 0.5})
        end()
        run.finish()
        from pathlib import Path
        from benchmarks.workloads.reading import wandb_values
        deadline = time.monotonic() + 20  # its process may write a little after that
        while not (count := wandb_values(Path())) and time.monotonic() < deadline:
            time.sleep(0.01)
        """,
    ),
    "mlflow.start_run and log_metric": (
        "peer",
        """
        import mlflow
        mlflow.set_tracking_uri("sqlite:///../mlflow.db")
        begin()
        run = mlflow.start_run()
        mlflow.log_metric("loss", 0.5, step=0)
        end()
        mlflow.end_run()
        count = len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss"))
        """,
    ),
}
_FRAME = """
import time
first = time.perf_counter()
def begin():
    global started
    started = time.perf_counter()
def end():
    global ended
    ended = time.perf_counter()
{code}
assert count == 1, f"{{count}} values of 1 were read back"
print(ended - started, ended - first)
"""
_PREPARE = (
    "from mlflow import MlflowClient; MlflowClient('sqlite:///mlflow.db').search_experiments()"
)


def measure(context: Context) -> list[Result]:
    """Imports beside numpy's, and the first `log()` beside what the backends' own calls take."""
    return [_imports(context), *_openings(context)]


def _imports(context: Context) -> Result:
    place = context.place("imports")
    (place / "nothing_in_it.py").touch()
    bare = "python -c pass, the whole process"
    light = interleaved(
        {bare: lambda _: _whole_process(place), **_importing(LIGHT, place)},
        context.pick(7, 1),
        warm_up=not context.quick,
    )
    context.tell("imports: those of the backends")
    backends = HEAVY[: context.pick(len(HEAVY), 1)]
    heavy = interleaved(_importing(backends, place), context.pick(2, 1), warm_up=not context.quick)
    roles = {bare: "control", **LIGHT}
    figures = [
        Figure(name, seen, roles.get(name, "peer")) for name, seen in (light | heavy).items()
    ]
    result = Result(
        id="starting-imports",
        title="Imports",
        text=(
            "Each in a new interpreter, timed inside it around the statement; the files are in the "
            "page cache. The floor is a module with nothing in it. `import metricbus` alone loads "
            "next to nothing, names are loaded when they are first used: `from metricbus import "
            "MetricBus` is what a script has."
        ),
        unit="ms",
        figures=figures,
        beside=NUMPY,
    )
    targets = [
        Target(f"{ours} beside {NUMPY}", ratio(result.figure(ours), result.figure(NUMPY)), 1.3)
        for ours, role in LIGHT.items()
        if role == "ours"
    ]
    return msgspec.structs.replace(result, targets=targets)


def _openings(context: Context) -> list[Result]:
    place = context.place("openings")
    fresh(["-c", _PREPARE], place)  # the database: a new one takes seconds, once
    context.tell("opening a run, each way")
    whole: dict[str, list[float]] = {}
    wanted = list(OPENINGS)[: context.pick(len(OPENINGS), 2)]
    arms = {name: _opening(name, OPENINGS[name][1], place, whole) for name in wanted}
    seen = interleaved(arms, context.pick(2, 1), warm_up=not context.quick)
    alone = Result(
        id="starting-first-log",
        title="From opening a run to the first value logged",
        text=(
            "Each in a new interpreter which has imported the library; until the first `log()` has "
            "returned. MetricBus opens its backends in the background: this is what the training "
            "waits for, not when they are ready. MLflow's database is there already: SQLite, used "
            "by both. The floor makes a folder, a file and a process, and waits for none of them."
        ),
        unit="ms",
        figures=_opened(seen),
        beside=FIVE_SINKS,
    )
    seen_ms = alone.figure(FIVE_SINKS).median
    target = Target("MetricBus() to the first log(), five sinks", seen_ms, 50.0, "ms")
    together = Result(
        id="starting-import-to-first-log",
        title="From importing the library to the first value logged",
        text="The same processes, with the imports that were left out above.",
        unit="ms",
        figures=_opened(whole),
        beside=FIVE_SINKS,
    )
    return [msgspec.structs.replace(alone, targets=[target]), together]


def _opened(seen: Mapping[str, list[float]]) -> list[Figure]:
    return [
        Figure(name, times, OPENINGS[name][0], complete="1 of 1 in each round")
        for name, times in seen.items()
    ]


def _importing(statements: Iterable[str], place: Path) -> dict[str, Callable[[int], float]]:
    def arm(statement: str) -> Callable[[int], float]:
        code = f"import time\nstart = time.perf_counter()\n{statement}\n"
        code += "print(time.perf_counter() - start)"
        return lambda _: float(fresh(["-c", code], place)) * 1e3

    return {statement: arm(statement) for statement in statements}


def _opening(
    name: str, code: str, place: Path, whole: dict[str, list[float]]
) -> Callable[[int], float]:
    """Gives the milliseconds without the imports; those with them go into `whole`."""

    def run(number: int) -> float:
        folder = place / f"{list(OPENINGS).index(name)}-{number}"
        folder.mkdir()
        told = fresh(["-c", _FRAME.format(code=textwrap.dedent(code))], folder)
        opening, all_of_it = (float(seconds) * 1e3 for seconds in told.split()[-2:])
        if number >= 0:
            whole.setdefault(name, []).append(all_of_it)
        return opening

    return run


def _whole_process(place: Path) -> float:
    start = time.perf_counter()
    fresh(["-c", "pass"], place)
    return (time.perf_counter() - start) * 1e3

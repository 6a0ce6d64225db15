"""Startup time: imports, and opening a run until the first `log()` returns.

Each measurement uses a new interpreter and `perf_counter` around the statement. This is more
precise than timing the whole process, as pyperf's `command` benchmark does, because it excludes the
start of Python, which takes about 10 ms and varies by as much as the measured times. Only `time` is
imported before, so no module is already loaded. A warm-up round fills the page cache.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from benchmarks.framework.fresh import run_fresh
from benchmarks.framework.harness import Context, Figure, Result, Role, Target, interleaved, ratio

NUMPY = "import numpy"
OURS = "from metricbus import MetricBus"
LIGHT: dict[str, Role] = {
    "import empty_module": "floor",
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

# Each snippet runs in a new folder. Only the part between `begin()` and `end()` is timed. The part
# after `end()` reads the value back.
OPENINGS: dict[str, tuple[Role, str]] = {
    "creating a folder, a file and a process": (
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
    "MetricBus, default sinks": (
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
        deadline = time.monotonic() + 20  # its process may write slightly later
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
_TEMPLATE = """
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
    """Measure imports, and the time until the first `log()` returns."""
    return [_imports_table(context), *_openings_tables(context)]


def _imports_table(context: Context) -> Result:
    folder = context.new_folder("imports")
    (folder / "empty_module.py").touch()
    bare = "python -c pass, whole process"
    light = interleaved(
        {bare: lambda _: _whole_process(folder), **_importing(LIGHT, folder)},
        context.pick(7, 1),
        warm_up=not context.quick,
    )
    context.log("imports of the backends")
    backends = HEAVY[: context.pick(len(HEAVY), 1)]
    heavy = interleaved(_importing(backends, folder), context.pick(2, 1), warm_up=not context.quick)
    roles = {bare: "control", **LIGHT}
    figures = [
        Figure(name, samples, roles.get(name, "peer")) for name, samples in (light | heavy).items()
    ]
    result = Result(
        id="startup-imports",
        title="Import time",
        text=(
            "Each statement is timed inside a new interpreter; the files are in the page cache. "
            "The floor is an empty module. `import metricbus` alone loads very little, because "
            "names are loaded on first use. `from metricbus import MetricBus` is what scripts use."
        ),
        unit="ms",
        figures=figures,
        baseline=NUMPY,
    )
    targets = [
        Target(
            f"{ours}, relative to {NUMPY}", ratio(result.figure(ours), result.figure(NUMPY)), 1.3
        )
        for ours, role in LIGHT.items()
        if role == "ours"
    ]
    return msgspec.structs.replace(result, targets=targets)


def _openings_tables(context: Context) -> list[Result]:
    folder = context.new_folder("openings")
    run_fresh(["-c", _PREPARE], folder)  # creating the database takes seconds
    context.log("opening a run")
    with_import: dict[str, list[float]] = {}
    wanted = list(OPENINGS)[: context.pick(len(OPENINGS), 2)]
    arms = {name: _opening(name, OPENINGS[name][1], folder, with_import) for name in wanted}
    samples = interleaved(arms, context.pick(2, 1), warm_up=not context.quick)
    without_import = Result(
        id="startup-first-log",
        title="Time from opening a run to the first logged value",
        text=(
            "The time until the first `log()` returns, in a new interpreter that has imported the "
            "library. MetricBus opens its backends in the background: this is the time that the "
            "training waits, not the time until the backends are ready. Both MetricBus and MLflow "
            "use an existing SQLite database. The floor creates a folder, a file and a process, "
            "and does not wait for the process."
        ),
        unit="ms",
        figures=_figures(samples),
        baseline=FIVE_SINKS,
    )
    measured = without_import.figure(FIVE_SINKS).median
    target = Target("MetricBus() to the first log(), five sinks", measured, 50.0, "ms")
    including_import = Result(
        id="startup-import-to-first-log",
        title="Time from importing the library to the first logged value",
        text="The same processes, including the imports.",
        unit="ms",
        figures=_figures(with_import),
        baseline=FIVE_SINKS,
    )
    return [msgspec.structs.replace(without_import, targets=[target]), including_import]


def _figures(samples: Mapping[str, list[float]]) -> list[Figure]:
    return [
        Figure(name, times, OPENINGS[name][0], read_back="1 of 1 in each round")
        for name, times in samples.items()
    ]


def _importing(statements: Iterable[str], folder: Path) -> dict[str, Callable[[int], float]]:
    def arm(statement: str) -> Callable[[int], float]:
        code = f"import time\nstart = time.perf_counter()\n{statement}\n"
        code += "print(time.perf_counter() - start)"
        return lambda _: float(run_fresh(["-c", code], folder)) * 1e3

    return {statement: arm(statement) for statement in statements}


def _opening(
    name: str, code: str, parent: Path, with_import: dict[str, list[float]]
) -> Callable[[int], float]:
    """Return a function that measures one round, in milliseconds without the imports.

    The function appends the time with the imports to `with_import`, except in the warm-up.
    """

    def run(number: int) -> float:
        folder = parent / f"{list(OPENINGS).index(name)}-{number}"
        folder.mkdir()
        output = run_fresh(["-c", _TEMPLATE.format(code=textwrap.dedent(code))], folder)
        opening, total = (float(seconds) * 1e3 for seconds in output.split()[-2:])
        if number >= 0:
            with_import.setdefault(name, []).append(total)
        return opening

    return run


def _whole_process(folder: Path) -> float:
    start = time.perf_counter()
    run_fresh(["-c", "pass"], folder)
    return (time.perf_counter() - start) * 1e3

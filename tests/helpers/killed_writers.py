"""Measures how many values a SIGKILL loses, for several writers.

.venv/bin/python -m tests.helpers.killed_writers          # all, as a Markdown table; takes minutes
.venv/bin/python -m tests.helpers.killed_writers wandb    # only one

A child process logs one value per call at a steady pace, with the writer's defaults, and reports
its last call. Then the child alone is killed. Its own child processes (of W&B, or of metricbus's
delivery) continue, as they do when a training runs out of memory. After a while the values are read
with the backend's own reader. With `--everything`, all of the processes are killed, as containers
and schedulers do. CLU and trackio run in a separate environment (`make .venv/peers/installed`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import SEPARATE_PYTHON, quiet
from benchmarks.workloads.reading import (
    journal_values,
    mlflow_values,
    tensorboard_values,
    tidy_csv_values,
    wandb_values,
    wide_csv_values,
)
from tests.helpers.limits import HANG_SECS

ROOT = Path(__file__).resolve().parents[2]

Log = Callable[[float, int], object]


def _summary_writer(folder: Path) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder))
    return lambda value, step: writer.add_scalar("loss", value, step)


def _tensorboardx(folder: Path) -> Log:
    writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))
    return lambda value, step: writer.add_scalar("loss", value, step)


def _lightning_csv(folder: Path) -> Log:
    """Save after each call, as the Trainer does."""
    logger = importlib.import_module("lightning.pytorch.loggers").CSVLogger(folder)

    def log(value: float, step: int) -> None:
        logger.log_metrics({"loss": value}, step)
        logger.save()

    return log


def _fabric_csv(folder: Path) -> Log:
    """Let the logger save every 100th step, as with Fabric and in scripts."""
    logger = importlib.import_module("lightning.fabric.loggers").CSVLogger(folder)
    return lambda value, step: logger.log_metrics({"loss": value}, step)


def _lightning_tensorboard(folder: Path) -> Log:
    logger = importlib.import_module("lightning.pytorch.loggers").TensorBoardLogger(folder)
    return lambda value, step: logger.log_metrics({"loss": value}, step)


def _clu(folder: Path) -> Log:
    writer = importlib.import_module("clu.metric_writers").create_default_writer(str(folder))
    return lambda value, step: writer.write_scalars(step, {"loss": value})


def _wandb(folder: Path) -> Log:
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(mode="offline", project="killed", dir=folder)
    return lambda value, step: run.log({"loss": value}, step=step)


def _mlflow(folder: Path) -> Log:
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return lambda value, step: mlflow.log_metric("loss", value, step=step)


def _mlflow_async(folder: Path) -> Log:
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return lambda value, step: mlflow.log_metric("loss", value, step=step, synchronous=False)


def _trackio(folder: Path) -> Log:
    os.environ["TRACKIO_DIR"] = str(folder)
    trackio = importlib.import_module("trackio")
    trackio.init(project="killed", name="killed", embed=False)
    return lambda value, step: trackio.log({"loss": value}, step=step)


def _trackio_values(folder: Path) -> int:
    """Count the values with trackio's own storage, in its environment."""
    code = (
        "from trackio.sqlite_storage import SQLiteStorage as s;"
        "print(sum('loss' in row for row in s.get_logs('killed', 'killed')))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(folder)}
    result = subprocess.run(
        [SEPARATE_PYTHON, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    return int(result.stdout.split()[-1])


def _metricbus(folder: Path) -> Log:
    from metricbus import MetricBus

    bus = MetricBus(sinks="csv,tensorboard", dir=folder, delivery="process")
    return lambda value, step: bus.log("loss", value, step=step)


def _in_one_csv(folder: Path) -> int:
    (file,) = folder.rglob("metrics.csv")
    return wide_csv_values(file)


def _in_journal_and_sinks(folder: Path) -> int:
    """Count the values in the journal, and check that the sinks have the same after delivery."""
    from metricbus import deliver

    (run,) = folder.glob("*/")
    deliver(run, timeout=HANG_SECS)
    count = journal_values(run)
    assert tidy_csv_values(run / "csv" / "metrics.csv") == tensorboard_values(run) == count
    return count


class Writer(NamedTuple):
    """How to open a writer with its defaults, how to count its values, and where it runs."""

    open: Callable[[Path], Log]
    count: Callable[[Path], int]
    is_separate: bool = False  # runs in the environment of CLU and trackio


WRITERS: dict[str, Writer] = {
    "metricbus": Writer(_metricbus, _in_journal_and_sinks),
    "SummaryWriter": Writer(_summary_writer, tensorboard_values),
    "tensorboardX": Writer(_tensorboardx, tensorboard_values),
    "Lightning TensorBoardLogger": Writer(_lightning_tensorboard, tensorboard_values),
    "Lightning CSVLogger, with its Trainer": Writer(_lightning_csv, _in_one_csv),
    "Lightning CSVLogger, alone": Writer(_fabric_csv, _in_one_csv),
    "CLU": Writer(_clu, tensorboard_values, is_separate=True),
    "wandb": Writer(_wandb, wandb_values),
    "mlflow": Writer(_mlflow, lambda folder: mlflow_values(f"sqlite:///{folder}/mlflow.db")),
    "mlflow, synchronous=False": Writer(
        _mlflow_async, lambda folder: mlflow_values(f"sqlite:///{folder}/mlflow.db")
    ),
    "trackio": Writer(_trackio, _trackio_values, is_separate=True),
}


def count_kept_values(
    name: str,
    folder: Path,
    *,
    calls: int,
    pace: float,
    patience: float = 30.0,
    everything: bool = False,
) -> int:
    """Return how many of `calls` values, one every `pace` seconds, can be read after the kill.

    Values are counted for up to `patience` seconds. With `everything`, they are counted at once,
    because no process is left that could write more.
    """
    writer = WRITERS[name]
    python = str(SEPARATE_PYTHON) if writer.is_separate else sys.executable
    command = [python, "-W", "ignore", "-m", "tests.helpers.killed_writers", "--write", name]
    child = subprocess.Popen(
        [*command, f"--into={folder}", f"--calls={calls}", f"--pace={pace}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": _path()},
    )
    assert child.stdout is not None
    victims = [child.pid]
    try:
        output = child.stdout.read(5)
        if everything:
            import psutil

            victims += [
                process.pid for process in psutil.Process(child.pid).children(recursive=True)
            ]
    finally:
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    if output != b"done\n":
        raise RuntimeError(f"{name}: the child process did not reach its last call")
    deadline = time.monotonic() + (0.0 if everything else patience)
    count = _count(writer, folder)
    while count < calls and time.monotonic() < deadline:
        time.sleep(0.2)
        count = _count(writer, folder)
    return count


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def _count(writer: Writer, folder: Path) -> int:
    """Return the number of values, or zero if no file can be read yet."""
    with contextlib.suppress(ValueError, AssertionError, FileNotFoundError):
        return writer.count(folder)
    return 0


def _write(name: str, folder: Path, calls: int, pace: float) -> None:
    """Log at a steady pace, report the last call, and wait for the kill (in the child process)."""
    with contextlib.redirect_stdout(sys.stderr):
        log = WRITERS[name].open(folder)
        started = time.monotonic()
        for step in range(calls):
            time.sleep(max(0.0, started + step * pace - time.monotonic()))
            log(1.0 / (step + 1), step)
    os.write(1, b"done\n")
    time.sleep(600)


def main() -> None:
    """Parse the command line, and run the parent or the child process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WRITERS))
    parser.add_argument("--calls", type=int, default=1077)
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between calls")
    parser.add_argument(
        "--patience", type=float, default=30.0, help="maximum seconds from the kill to the count"
    )
    parser.add_argument("--everything", action="store_true", help="kill all processes of the child")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet()
    if args.write:
        _write(args.write, args.into, args.calls, args.pace)
        return
    print(f"| {args.calls} calls, one every {args.pace * 1e3:g} ms | read back | lost |")
    print("|---|---:|---:|")
    for name in args.names or WRITERS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            count = count_kept_values(
                name,
                Path(folder),
                calls=args.calls,
                pace=args.pace,
                patience=args.patience,
                everything=args.everything,
            )
        print(f"| {name} | {count} | {args.calls - count} |", flush=True)


if __name__ == "__main__":
    main()
